//! The floor table of `src/lib.rs` against the imports in `src/**`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Modules of the crate that stand on no floor.
const UNPLACED: [&str; 1] = ["test_support"];

/// Module to floor, from the rows `//! | 5 | [`judge`], [`train`] | … |`.
fn floor_table(lib: &str) -> BTreeMap<String, u32> {
    let mut table = BTreeMap::new();
    for line in lib.lines().filter_map(|l| l.strip_prefix("//! |")) {
        let mut cells = line.split('|').map(str::trim);
        let (Some(Ok(floor)), Some(modules)) = (cells.next().map(str::parse), cells.next()) else {
            continue;
        };
        // Names stand between backquotes.
        for name in modules.split('`').skip(1).step_by(2) {
            let before = table.insert(name.to_owned(), floor);
            assert!(before.is_none(), "`{name}` stands in the table twice");
        }
    }
    table
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("src can be listed") {
        let path = entry.expect("src can be listed").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The source without comments, without the contents of string literals, and without what stands under `#[cfg(test)]`
/// (tests may reach sideways).
fn code_only(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let bytes: Vec<char> = source.chars().collect();
    let at = |i: usize| bytes.get(i).copied().unwrap_or('\0');
    let mut i = 0;
    while i < bytes.len() {
        match (at(i), at(i + 1)) {
            ('/', '/') => {
                while i < bytes.len() && at(i) != '\n' {
                    i += 1;
                }
            }
            ('/', '*') => {
                let mut depth = 1;
                i += 2;
                while i < bytes.len() && depth > 0 {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                }
            }
            // `r"…"`, `br#"…"#`: the hashes say which quote ends it.
            ('r', '"' | '#') if !(i > 0 && is_word(at(i - 1)) && at(i - 1) != 'b') => {
                let hashes = (i + 1..).take_while(|&j| at(j) == '#').count();
                if at(i + 1 + hashes) != '"' {
                    code.push('r'); // a raw identifier
                    i += 1;
                    continue;
                }
                i += hashes + 2;
                while i < bytes.len() && !(at(i) == '"' && (1..=hashes).all(|h| at(i + h) == '#')) {
                    i += 1;
                }
                i += hashes + 1;
            }
            ('"', _) => {
                i += 1;
                while i < bytes.len() && at(i) != '"' {
                    i += if at(i) == '\\' { 2 } else { 1 };
                }
                i += 1;
            }
            // A character that would look like the beginning of a string; lifetimes are no characters.
            ('\'', '\\') => {
                i += 3;
                while i < bytes.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
            }
            ('\'', _) if at(i + 2) == '\'' => i += 3,
            (c, _) => {
                code.push(c);
                i += 1;
            }
        }
    }
    without_tests(&code)
}

/// Cuts every item that follows `#[cfg(test)]`, up to its closing brace or semicolon.
fn without_tests(code: &str) -> String {
    let mut parts = code.split("#[cfg(test)]");
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut depth = 0;
        let end = part.char_indices().find(|&(_, c)| match c {
            '{' => {
                depth += 1;
                false
            }
            '}' => {
                depth -= 1;
                depth == 0
            }
            ';' => depth == 0,
            _ => false,
        });
        kept.push_str(end.map_or("", |(i, c)| &part[i + c.len_utf8()..]));
    }
    kept
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The crate's modules that the code names: `crate::x`, and `crate::{x, y::z}`.
fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (i, _) in code.match_indices("crate::") {
        let before = code[..i].chars().next_back();
        if before.is_some_and(|c| is_word(c) || c == '$') {
            continue;
        }
        let rest = code[i + "crate::".len()..].trim_start();
        let word = |s: &str| s.trim().chars().take_while(|&c| is_word(c)).collect();
        let Some(list) = rest.strip_prefix('{') else {
            found.push(word(rest));
            continue;
        };
        let (mut depth, mut start) = (0, 0);
        for (j, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' | '}' if depth == 0 => {
                    found.push(word(&list[start..j]));
                    start = j + 1;
                    if c == '}' {
                        break;
                    }
                }
                _ => {}
            }
        }
    }
    found.retain(|name: &String| !name.is_empty());
    found
}

/// Unit tests in a file of their own, `tests.rs` or `x_tests.rs`: they may reach sideways like those at a file's foot.
fn is_test_file(path: &Path) -> bool {
    let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or("");
    stem == "tests" || stem.ends_with("_tests")
}

/// What a source of module `own` imports that it must not.
fn violations(own: &str, source: &str, table: &BTreeMap<String, u32>) -> Vec<String> {
    let floor = table[own];
    imports(&code_only(source))
        .into_iter()
        .filter(|name| name != own && !UNPLACED.contains(&name.as_str()))
        // What is no module is an item at the crate's root: there are none, so it is a module nobody placed.
        .filter(|name| table.get(name).is_none_or(|&other| other >= floor))
        .collect()
}

#[test]
fn modules_import_only_from_floors_below() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let lib = fs::read_to_string(src.join("lib.rs")).expect("src/lib.rs");
    let table = floor_table(&lib);
    assert!(table.len() >= 10, "the table was not understood: {table:?}");

    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut complaints = Vec::new();
    for file in files {
        let path = file.strip_prefix(&src).expect("listed under src");
        let first = path.iter().next().and_then(|p| p.to_str()).unwrap_or("");
        let own = first.strip_suffix(".rs").unwrap_or(first);
        if own == "lib" || UNPLACED.contains(&own) || is_test_file(path) {
            continue;
        }
        if !table.contains_key(own) {
            complaints.push(format!("`{own}` has no floor in src/lib.rs"));
            continue;
        }
        // The binary is a crate of its own and may use all of the library.
        if own == "main" {
            continue;
        }
        let source = fs::read_to_string(&file).expect("a source can be read");
        for name in violations(own, &source, &table) {
            complaints.push(format!("{}: imports crate::{name}", path.display()));
        }
    }
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn the_engines_policy_knows_no_tensors() {
    let engine = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/engine");
    let mut files = vec![engine.join("request.rs"), engine.join("tenant.rs")];
    sources(&engine.join("scheduler"), &mut files);
    sources(&engine.join("kv_cache"), &mut files);
    assert!(files.len() > 4);
    for file in files {
        let code = code_only(&fs::read_to_string(&file).expect("a source can be read"));
        for word in [
            "candle",
            "Tensor",
            "crate::model",
            "crate::nn",
            "crate::kernels",
        ] {
            assert!(!code.contains(word), "{} speaks of {word}", file.display());
        }
    }
}

#[test]
fn the_reader_sees_imports_and_nothing_else() {
    let table = floor_table("//! | 5 | [`judge`], [`train`] | x |\n//! | 0 | `text` | leaves |");
    assert_eq!(table.len(), 3);
    let refused = |source: &str| violations("train", source, &table);
    for fine in [
        "use crate::text::Tokenizer;",
        "use crate::train::loss;",
        "// use crate::judge::Judge;",
        "/* a /* b */ crate::judge */ fn f() {}",
        "/// [`crate::judge::Judge`]\nfn f() {}",
        "const A: &str = \"crate::judge\";",
        "const A: &str = r#\"\" crate::judge \"#;",
        "const A: char = '\"'; // crate::judge\n const B: char = '\"';",
        "const A: [char; 2] = ['\\'', '\\u{22}']; // crate::judge",
        "fn f<'a>(x: &'a str) {}\n#[cfg(test)]\nmod tests { use crate::judge::A; fn g() { {} } }",
        "#[cfg(test)]\nuse crate::judge::A;\nfn f() {}",
        "pub(crate) fn f() {}",
        "use othercrate::judge;",
    ] {
        assert!(refused(fine).is_empty(), "{fine}");
    }
    for (bad, module) in [
        ("use crate::judge::Judge;", "judge"),
        ("fn f() -> crate::judge::Judge { todo!() }", "judge"),
        ("use crate::{text::Tokenizer, judge::{A, B}};", "judge"),
        ("use crate::nowhere;", "nowhere"),
        ("#[cfg(test)]\nmod tests { }\nuse crate::judge::A;", "judge"),
        ("fn f<'a>() {} use crate::judge::A; fn g<'b>() {}", "judge"),
        ("const A: &str = \"\\\"\"; use crate::judge::A;", "judge"),
    ] {
        assert_eq!(refused(bad), [module], "{bad}");
    }
}

//! `/docs` needs nothing but the server: whatever the page loads is part of the program.

use axum::http::header::CONTENT_TYPE;
use regex::Regex;

use super::*;

fn fetched(path: &str) -> (StatusCode, String, String) {
    RUNTIME.block_on(async {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = SERVER.clone().oneshot(request).await.unwrap();
        let kind = response.headers().get(CONTENT_TYPE);
        let kind = kind.map_or_else(String::new, |kind| kind.to_str().unwrap().to_owned());
        let status = response.status();
        let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, kind, String::from_utf8_lossy(&bytes).into_owned())
    })
}

/// Whether a text of this kind has a host in a place from which a browser loads.
fn loads_from_a_host(kind: &str, text: &str) -> bool {
    const HOST: &str = r#"\s*["'`]?\s*(?:https?:)?//"#;
    let places = match kind {
        _ if kind.starts_with("text/html") => r"(?:\bsrc|\bhref|\baction|\bdata)\s*=",
        _ if kind.starts_with("text/css") => r"(?:url\(|@import)",
        _ if kind.contains("javascript") => {
            r"(?:\bsrc\s*[:=]|\bimport\s*\(|\bfrom\b|\bimportScripts\s*\(|\bnew Worker\s*\()"
        }
        _ => return false,
    };
    Regex::new(&format!("{places}{HOST}"))
        .unwrap()
        .is_match(text)
}

#[test]
fn the_question_finds_what_it_asks_for() {
    for (kind, text) in [
        ("text/html", r#"<script src="https://cdn.example/a.js">"#),
        ("text/html", "<link href='//cdn.example/a.css'>"),
        (
            "text/css",
            "a { background: url(http://cdn.example/a.png) }",
        ),
        ("text/css", r#"@import "https://cdn.example/a.css""#),
        ("text/javascript", r#"import("https://cdn.example/a.js")"#),
        (
            "text/javascript",
            r#"import a from "https://cdn.example/a.js""#,
        ),
        ("text/javascript", r#"script.src="//cdn.example/a.js""#),
    ] {
        assert!(loads_from_a_host(kind, text), "{text}");
    }
    assert!(!loads_from_a_host("text/html", r#"<script src="./a.js">"#));
}

#[test]
fn the_page_and_all_that_it_loads_are_part_of_the_program() {
    let (status, kind, page) = fetched("/docs/");
    assert_eq!(status, StatusCode::OK);
    assert!(
        kind.starts_with("text/html") && !loads_from_a_host(&kind, &page),
        "{page}"
    );
    let named = Regex::new(r#"(?:src|href)\s*=\s*"([^"]*)""#).unwrap();
    let named: Vec<&str> = named
        .captures_iter(&page)
        .map(|found| found.get(1).unwrap().as_str())
        .collect();
    assert!(named.len() >= 6, "{named:?}");
    let mut all = String::new();
    for name in named {
        let (status, kind, text) = fetched(&format!("/docs/{}", name.trim_start_matches("./")));
        assert_eq!(status, StatusCode::OK, "{name}");
        assert!(!kind.is_empty() && !text.is_empty(), "{name}");
        assert!(!loads_from_a_host(&kind, &text), "{name}");
        all.push_str(&text);
    }
    // What the page asks for by itself: the description, here; and nobody whether that is valid.
    assert!(all.contains(r#""url": "/openapi.json""#));
    assert!(all.contains(r#""validatorUrl": "none""#));
    assert_eq!(fetched("/openapi.json").0, StatusCode::OK);
}

//! What unit tests and integration tests share: tests that need something beside the project.
//!
//! Where it is absent they print one line, `skipped: needs ...`, and pass. `SELFJUDGE_REQUIRE` lists what must not be absent (`data`,
//! `postgres`, `clients`, `transformers`, `node`, `lm-eval`, `pyarrow`), and `REQUIRE_ALL=1` requires all of it: then they fail.

use std::path::{Path, PathBuf};

/// Something that is not part of the project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Files in `../shared/data`, or in `data` below `SELFJUDGE_SHARED`.
    Data,
    /// A server that `SELFJUDGE_TEST_POSTGRES` names.
    Postgres,
    /// Python with OpenAI's client and schemathesis.
    Clients,
    /// Python with transformers and peft.
    Transformers,
    /// Node.js with OpenAI's client.
    Node,
    /// Python with lm-eval.
    LmEval,
    /// Python with pyarrow.
    Pyarrow,
}

impl Need {
    fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Postgres => "postgres",
            Self::Clients => "clients",
            Self::Transformers => "transformers",
            Self::Node => "node",
            Self::LmEval => "lm-eval",
            Self::Pyarrow => "pyarrow",
        }
    }

    fn is_required(self, all: Option<&str>, list: Option<&str>) -> bool {
        let listed = || list?.split(',').find(|name| name.trim() == self.name());
        all.is_some_and(|all| all == "1") || listed().is_some()
    }
}

/// Says that a test is skipped, and what for.
///
/// # Panics
/// If it must not be.
pub fn skipped(need: Need, what: &str) {
    let variable = |name: &str| std::env::var(name).ok();
    let (all, list) = (variable("REQUIRE_ALL"), variable("SELFJUDGE_REQUIRE"));
    assert!(
        !need.is_required(all.as_deref(), list.as_deref()),
        "this test needs {what}, and must not be skipped"
    );
    eprintln!("skipped: needs {what}");
}

/// A folder of the data that lies beside the project, or `None`, said aloud, where it is absent.
pub fn shared_data(folder: &str) -> Option<PathBuf> {
    let root = std::env::var_os("SELFJUDGE_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        PathBuf::from,
    );
    let path = root.join("data").join(folder);
    if path.exists() {
        return Some(path);
    }
    skipped(Need::Data, &format!("../shared/data/{folder}"));
    None
}

#[test]
fn what_is_required_is_listed_or_all() {
    for (all, list, required) in [
        (None, None, false),
        (Some("1"), None, true),
        (Some("0"), Some("clients, data"), true),
        (Some(""), Some("database"), false),
    ] {
        assert_eq!(
            Need::Data.is_required(all, list),
            required,
            "{all:?} {list:?}"
        );
    }
}

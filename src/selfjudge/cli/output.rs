//! Files that a command writes at its end.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use tempfile::NamedTempFile;

/// Runs `rest` and returns `text`, which was expensive to compute; prints the text before returning an error of `rest`.
pub fn keeping(text: String, rest: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<String> {
    match rest() {
        Ok(()) => Ok(text),
        Err(error) => {
            super::say(&text)?;
            Err(error)
        }
    }
}

/// A file that is written after all work is done; the constructor checks in advance that it can be written.
pub struct Output<'a> {
    /// The target path, and a temporary file beside it.
    place: Option<(&'a Path, NamedTempFile)>,
}

impl<'a> Output<'a> {
    /// # Errors
    /// Fails if no file can be created there.
    pub fn to(path: Option<&'a Path>) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Ok(Self { place: None });
        };
        let cannot = || format!("cannot write {}", path.display());
        anyhow::ensure!(!path.is_dir(), "{}: it is a directory", cannot());
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let draft = NamedTempFile::new_in(dir.unwrap_or(Path::new("."))).with_context(cannot)?;
        Ok(Self {
            place: Some((path, draft)),
        })
    }

    /// Writes the file, if a path was given.
    pub fn write(self, text: &str) -> anyhow::Result<()> {
        let Some((path, mut draft)) = self.place else {
            return Ok(());
        };
        let cannot = || format!("cannot write {}", path.display());
        draft.write_all(text.as_bytes()).with_context(cannot)?;
        draft.persist(path).map(drop).with_context(cannot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_tried_before_the_work() {
        let dir = tempfile::tempdir().unwrap();
        let whole = dir.path().join("report.json");
        let output = Output::to(Some(&whole)).unwrap();
        output.write("{}").unwrap();
        assert_eq!(std::fs::read_to_string(&whole).unwrap(), "{}");
        Output::to(None).unwrap().write("x").unwrap();
        for nowhere in [
            dir.path().to_owned(),
            dir.path().join("no/such/report.json"),
            whole.join("report.json"),
        ] {
            let error = Output::to(Some(&nowhere)).err().unwrap().to_string();
            assert!(error.contains("cannot write"), "{error}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

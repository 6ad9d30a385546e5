//! A body in a person's editor.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use serde_json::Value;

use crate::pipeline::json;

/// A file with a body in it, for its owner alone: bodies hold values. It is removed with this.
pub(super) struct Draft {
    path: PathBuf,
    /// What it began with, and the body that was laid out so.
    text: Vec<u8>,
    body: Bytes,
    keep: bool,
}

impl Draft {
    /// Writes a body, laid out for people where it is JSON.
    pub(super) fn of(body: &Bytes) -> anyhow::Result<Self> {
        let text = match json::parse(body) {
            Ok(value) => format!("{value:#}\n").into_bytes(),
            Err(_) => body.to_vec(),
        };
        let path = std::env::temp_dir().join(format!("dead-letter-{}.json", uuid::Uuid::new_v4().simple()));
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        let mut file = file.with_context(|| format!("cannot create {}", path.display()))?;
        file.write_all(&text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path, text, body: body.clone(), keep: false })
    }

    /// Opens it in `$VISUAL` or `$EDITOR`, and gives the body that a person left there.
    pub(super) fn edit(&self) -> anyhow::Result<Bytes> {
        let editor = ["VISUAL", "EDITOR"].iter().find_map(|name| std::env::var(name).ok().filter(|e| !e.is_empty()));
        let Some(editor) = editor else { bail!("neither VISUAL nor EDITOR is set; set one, or say --patch JSON") };
        // As others do: the variable is a command line, not a path.
        let ended =
            std::process::Command::new("sh").args(["-c", &format!("{editor} \"$1\""), "sh"]).arg(&self.path).status();
        let ended = ended.with_context(|| format!("cannot start {editor:?}"))?;
        if !ended.success() {
            bail!("the editor ended with {ended}; nothing was changed");
        }
        let text = std::fs::read(&self.path).with_context(|| format!("cannot read {}", self.path.display()))?;
        if text == self.text {
            return Ok(self.body.clone());
        }
        // Compact, as producers write; what is no JSON is refused later, with what is wrong with it.
        Ok(json::parse(&text).map_or_else(|_| text.into(), |value: Value| value.to_string().into()))
    }

    /// Leaves the file.
    pub(super) fn keep(mut self) -> PathBuf {
        self.keep = true;
        self.path.clone()
    }

    #[cfg(test)]
    fn path(&self) -> &std::path::Path {
        &self.path
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.keep {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_draft_is_laid_out_for_its_owner_alone_and_goes_unless_it_is_kept() {
        let draft = Draft::of(&Bytes::from_static(b"{\"a\":1.50}")).unwrap();
        let path = draft.path().to_owned();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\n  \"a\": 1.50\n}\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(draft);
        assert!(!path.exists());
        let kept = Draft::of(&Bytes::from_static(b"no json")).unwrap().keep();
        assert_eq!(std::fs::read(&kept).unwrap(), b"no json");
        std::fs::remove_file(kept).unwrap();
    }
}

//! Cutting the input into jobs: one object, an array, or JSON lines. Bodies are kept as they are written.

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Longest input, in bytes; a larger file is split.
const MAX_BYTES: u64 = 256_000_000;

/// One job as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    /// Where it was: `job 3`, `line 17`.
    pub(super) place: String,
    /// Its text.
    pub(super) body: Bytes,
}

/// Reads a file, or standard input for `-`.
pub(super) async fn read(file: &str) -> anyhow::Result<Vec<Item>> {
    let text = if file == "-" {
        read_all(tokio::io::stdin()).await.context("cannot read standard input")?
    } else {
        let opened = tokio::fs::File::open(file).await.with_context(|| format!("cannot open {file:?}"))?;
        read_all(opened).await.with_context(|| format!("cannot read {file:?}"))?
    };
    let items = split(&text);
    ensure!(!items.is_empty(), "there is no job in {file:?}");
    Ok(items)
}

async fn read_all(source: impl AsyncRead + Unpin) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    source.take(MAX_BYTES + 1).read_to_end(&mut bytes).await?;
    ensure!(bytes.len() as u64 <= MAX_BYTES, "it has more than {MAX_BYTES} bytes; split it");
    String::from_utf8(bytes)
        .map_err(|error| anyhow::anyhow!("it is not UTF-8 at byte {}", error.utf8_error().valid_up_to()))
}

/// Cuts. What is not JSON becomes an item too, so that the validator can say what is wrong with it.
pub(super) fn split(text: &str) -> Vec<Item> {
    let jobs = |values: Vec<Box<RawValue>>| {
        let items = values.iter().enumerate();
        items.map(|(index, value)| item(format!("job {}", index + 1), value.get())).collect()
    };
    let stream = serde_json::Deserializer::from_str(text).into_iter::<Box<RawValue>>();
    match stream.collect::<Result<Vec<_>, _>>() {
        Ok(values) => match values.as_slice() {
            [only] if only.get().starts_with('[') => match serde_json::from_str(only.get()) {
                Ok(values) => jobs(values),
                Err(_) => vec![item("job 1".to_owned(), only.get())],
            },
            _ => jobs(values),
        },
        Err(_) if is_lines(text) => {
            let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
            lines.map(|(index, line)| item(format!("line {}", index + 1), line)).collect()
        }
        Err(_) => vec![item("job 1".to_owned(), text)],
    }
}

/// Whether a broken text is better read line by line: any line is a whole object.
fn is_lines(text: &str) -> bool {
    text.lines().any(|line| line.starts_with('{') && serde_json::from_str::<&RawValue>(line).is_ok())
}

fn item(place: String, text: &str) -> Item {
    Item { place, body: Bytes::copy_from_slice(text.as_bytes()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bodies(text: &str) -> Vec<(String, String)> {
        let items = split(text).into_iter();
        items.map(|item| (item.place, String::from_utf8(item.body.to_vec()).unwrap())).collect()
    }

    fn expected(items: &[(&str, &str)]) -> Vec<(String, String)> {
        items.iter().map(|(place, body)| ((*place).to_owned(), (*body).to_owned())).collect()
    }

    #[test]
    fn every_form_is_cut_into_jobs_as_they_are_written() {
        let spread = "{\n  \"a\": 1.50\n}";
        assert_eq!(bodies(spread), expected(&[("job 1", spread)]));
        assert_eq!(bodies("[ {\"a\":1} ,\n {\"a\": 2}]"), expected(&[("job 1", "{\"a\":1}"), ("job 2", "{\"a\": 2}")]));
        assert_eq!(bodies("{\"a\":1}\n\n{\"a\":2}\n"), expected(&[("job 1", "{\"a\":1}"), ("job 2", "{\"a\":2}")]));
        assert_eq!(bodies(" \n"), []);
        assert_eq!(bodies("[]"), []);
    }

    #[test]
    fn a_broken_line_does_not_take_the_others_along() {
        let text = "{\"a\":1}\n{\"a\":\n{\"a\":3}";
        assert_eq!(bodies(text), expected(&[("line 1", "{\"a\":1}"), ("line 2", "{\"a\":"), ("line 3", "{\"a\":3}")]));
    }

    #[test]
    fn a_broken_object_is_one_job_for_the_validator_to_refuse() {
        let text = "{\n \"a\": \n}";
        assert_eq!(bodies(text), expected(&[("job 1", text)]));
    }
}

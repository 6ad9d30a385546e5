//! ARCHITECTURE.md names what there is: every room in the code map, every mutant of the model, every reason code, and no
//! test that is not there.

use std::path::Path;

use context_injector::pipeline::verdict::Reason;

const ARCHITECTURE: &str = include_str!("../../ARCHITECTURE.md");
const MUTANTS: &str = include_str!("../model/mutants.rs");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All source files below a directory, as one text.
fn source(directory: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text.push_str(&source(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
    text
}

/// The cells of the table with that head.
fn rows(head: &str) -> Vec<[&'static str; 2]> {
    let (_, table) = ARCHITECTURE.split_once(&format!("\n{head}\n| --- | --- |\n")).expect(head);
    let rows = table.lines().take_while(|line| line.starts_with('|'));
    let cells = rows.map(|row| row.trim_matches(['|', ' ']).split_once(" | ").expect(row));
    cells.map(|(left, right)| [left, right]).collect()
}

/// What stands between pairs of a mark.
fn spans(text: &'static str, mark: char) -> impl Iterator<Item = &'static str> {
    text.split(mark).skip(1).step_by(2)
}

#[test]
fn the_map_names_every_room() {
    let (_, map) = ARCHITECTURE.split_once("\n## Code map, in reading order\n").unwrap();
    let map = map.split("\n## ").next().unwrap();
    for entry in std::fs::read_dir(root().join("src")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let room = name.trim_end_matches(".rs");
        let named = map.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == room);
        assert!(named || ["lib", "main"].contains(&room), "the code map does not name src/{name}");
    }
}

#[test]
fn every_test_that_holds_an_invariant_is_there_and_so_is_every_mutant() {
    let rows = rows("| Invariant | Held by |");
    let all = source(&root().join("src")) + &source(&root().join("tests"));
    for name in rows.iter().flat_map(|[_, tests]| spans(tests, '`')) {
        let is_promise = root().join("tests/it").join(name).with_extension("rs").is_file();
        let is_there = name == "tests/model" || is_promise || all.contains(&format!("fn {name}("));
        assert!(is_there, "there is no {name}");
    }
    let mut named = rows.iter().flat_map(|[_, tests]| spans(tests, '*')).collect::<Vec<_>>();
    let mut mutants = spans(MUTANTS.split_once("impl fmt::Display for Mutant").unwrap().1, '"').collect::<Vec<_>>();
    named.sort_unstable();
    mutants.sort_unstable();
    assert_eq!(named, mutants);
}

#[test]
fn every_reason_code_has_a_test_that_is_there() {
    let mut codes = Vec::new();
    for [left, right] in rows("| Reason code | Test |") {
        let of_row = spans(left, '`').collect::<Vec<_>>();
        let test = spans(right, '`').next().unwrap();
        let text = match test.split_once("::") {
            Some((promise, _)) => std::fs::read_to_string(root().join(format!("tests/it/{promise}.rs"))).unwrap(),
            None => source(&root().join("src")),
        };
        let name = test.rsplit("::").next().unwrap();
        assert!(text.contains(&format!("fn {name}(")), "there is no {test}");
        for code in of_row.iter().filter(|_| test.contains("::")) {
            let quoted = text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == *code);
            assert!(quoted, "{test} tells nothing of {code}");
        }
        codes.extend(of_row);
    }
    codes.sort_unstable();
    let mut known = Reason::ALL.map(Reason::as_str);
    known.sort_unstable();
    assert_eq!(codes, known, "each once");
}

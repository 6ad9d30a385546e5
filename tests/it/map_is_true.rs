//! The code map in ARCHITECTURE.md names every room that there is.

use std::path::Path;

const ARCHITECTURE: &str = include_str!("../../ARCHITECTURE.md");

#[test]
fn the_map_names_every_room() {
    let (_, map) = ARCHITECTURE.split_once("\n## Code map, in reading order\n").unwrap();
    let map = map.split("\n## ").next().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in std::fs::read_dir(source).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let room = name.trim_end_matches(".rs");
        let named = map.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == room);
        assert!(named || ["lib", "main"].contains(&room), "the code map does not name src/{name}");
    }
}

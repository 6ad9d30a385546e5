//! A reader that has enough, as `head` has, is no error of a command, and changes neither what it does nor its exit code.

use std::process::Stdio;

use crate::looks_into_dead_letters::Room;
use crate::support::within;

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_standard_output_is_no_error() {
    let room = Room::new("quiet").await;
    room.bury(3).await;
    let discard = ["dead-letters", "discard", "job-00000", "--yes", "--by", "alice", "--why", "for a record"];
    assert_eq!(room.run(&discard).await.0, 0);
    for (arguments, expected) in [
        (&["topology", "check", "--json"][..], 0),
        (&["topology", "apply"], 0),
        (&["endpoints", "list"], 0),
        (&["endpoints", "list", "--json"], 0),
        (&["endpoints", "show", "analytics"], 0),
        (&["endpoints", "rotate", "analytics"], 0),
        (&["dead-letters", "list"], 0),
        (&["dead-letters", "list", "--json"], 0),
        (&["dead-letters", "show", "job-00001"], 0),
        (&["dead-letters", "export"], 0),
        (&["dead-letters", "edit", "job-00001", "--by", "alice", "--why", "no", "--patch", "{}"], 0),
        (&["audit", "verify"], 0),
        (&["audit", "tail", "--since", "1h"], 0),
        (&["audit", "export"], 0),
        (&["config", "check"], 0),
        (&["config", "show", "--defaults"], 0),
        (&["schema", "job"], 0),
        // Whoever changes something stops where nobody learns of it, and says so.
        (&["dead-letters", "replay"], 1),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = room.process(arguments);
        // Not `output`, which would give it another one.
        let running = command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let output = within(&arguments.join(" "), running.wait_with_output()).await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(expected), "{arguments:?}: {said}");
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
        assert_eq!(said.contains("error:"), expected != 0, "{arguments:?}: {said}");
    }
}

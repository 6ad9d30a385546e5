//! The target against bare sockets, where every byte counts.

use std::collections::BTreeSet;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::{ID, bot, conversation, failed};
use crate::target::*;

/// A server that answers each connection's first request with a text, and keeps what it was sent.
pub(super) async fn canned(answers: Vec<&'static str>) -> (String, tokio::task::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        let mut requests = Vec::new();
        for answer in answers {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !is_whole(&request) {
                assert_ne!(socket.read_buf(&mut request).await.unwrap(), 0, "the client left");
            }
            requests.push(String::from_utf8(request).unwrap());
            socket.write_all(answer.as_bytes()).await.unwrap();
        }
        requests
    });
    (url, serving)
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    body.len() >= length.map_or(0, |length| length.parse().unwrap())
}

pub(super) const TOKEN: &str =
    "HTTP/1.1 200 OK\r\ncontent-length: 41\r\nconnection: close\r\n\r\n{\"access_token\":\"t-1\",\"expires_in\":3600 }";

pub(super) fn lines(request: &str) -> BTreeSet<&str> {
    request.lines().collect()
}

#[tokio::test]
async fn requests_are_spelled_as_the_contract_shows() {
    let empty = "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
    let read = "HTTP/1.1 200 OK\r\ncontent-length: 14\r\nconnection: close\r\n\r\n{\"context\":{}}";
    let (url, serving) = canned(vec![TOKEN, empty, read]).await;
    let target = Target::new(&bot(&format!("{url}/bots/7"), "")).unwrap();
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let version = Version::new("42");
    let body = Bytes::from_static(b"{\"exactly\": \"these bytes\"}");
    let write = target.write(&conversation(ID), body, Some(&version), Some(trace)).await;
    assert_eq!(write, Write::Applied { version: None });
    let read = target.read(&conversation("a/b ?ü"), Some("no\nheader")).await;
    assert_eq!(read, Read::Observed(Observed::default()));

    let requests = serving.await.unwrap();
    let token = lines(&requests[0]);
    assert!(token.contains("POST /bots/7/api/v1/auth/token HTTP/1.1"), "{token:?}");
    assert!(token.contains("content-type: application/x-www-form-urlencoded"), "{token:?}");
    assert!(token.contains(
        "grant_type=client_credentials&client_id=sandbox&client_secret=sandbox-secret&scope=context%3Awrite+conversation%3Aread"
    ));
    let write = lines(&requests[1]);
    for line in [
        "PATCH /bots/7/api/v1/context HTTP/1.1",
        "authorization: Bearer t-1",
        "content-type: application/json",
        "if-match: 42",
        &format!("traceparent: {trace}"),
        &format!("user-agent: context-injector/{}", env!("CARGO_PKG_VERSION")),
        "{\"exactly\": \"these bytes\"}",
    ] {
        assert!(write.contains(line), "{line} in {write:?}");
    }
    let read = lines(&requests[2]);
    assert!(read.contains("GET /bots/7/api/v1/context/a%2Fb%20%3F%C3%BC HTTP/1.1"), "{read:?}");
    assert!(!requests[2].contains("content-length") && !requests[2].contains("traceparent"), "{read:?}");
    assert!(requests[2].ends_with("\r\n\r\n"), "a read has no body");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let moved =
        "HTTP/1.1 307 Temporary Redirect\r\nlocation: /elsewhere\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let (url, serving) = canned(vec![TOKEN, moved]).await;
    let target = Target::new(&bot(&url, "")).unwrap();
    let Read::Failed(failure) = target.read(&conversation(ID), None).await else { panic!("it was followed") };
    assert_eq!((matches!(failure, Failure::Ambiguous(_)), failure.detail().status), (true, Some(307)));
    assert_eq!(serving.await.unwrap().len(), 2);
}

#[tokio::test]
async fn nobody_there_is_certainly_without_effect() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let (tokens, _serving) = canned(vec![TOKEN]).await;
    let target = Target::new(&bot(&nobody, &format!("token_url = \"{tokens}/token\""))).unwrap();
    let failure = failed(target.write(&conversation(ID), Bytes::new(), None, None).await);
    assert!(matches!(failure, Failure::NotSent(_)), "{failure:?}");
    assert!(failure.to_string().contains(&format!("cannot connect to {nobody}: Connection refused")), "{failure}");
}

#[tokio::test]
async fn a_connection_that_breaks_after_sending_is_ambiguous() {
    for answer in ["", "HTTP/1.1 2", "no HTTP at all\r\n\r\n"] {
        let (url, _serving) = canned(vec![TOKEN, answer]).await;
        let target = Target::new(&bot(&url, "")).unwrap();
        let failure = failed(target.write(&conversation(ID), Bytes::from_static(b"{}"), None, None).await);
        assert!(matches!(failure, Failure::Ambiguous(_)), "{answer:?}: {failure:?}");
    }
}

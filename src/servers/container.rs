//! The same servers from images, through the `docker` command: where an image is named, and where there are no
//! binaries.
//!
//! The port is published on loopback at a number chosen beforehand, so that a container that is started again
//! has the same address. `RABBITMQ_IMAGE` and `REDIS_IMAGE` name other images than the official ones.

use std::process::{Command, Stdio};

use super::watched::{Scratch, Spec};
use super::{Kind, find_program, free_port};

/// The first start, the start after a kill, and the port; `None` where docker is not there or does not answer.
pub(super) fn prepare(kind: &Kind, scratch: &Scratch) -> std::io::Result<Option<(Spec, Spec, u16)>> {
    let Some(docker) = find_program("docker", &[]) else { return Ok(None) };
    let answers = Command::new(&docker).arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !answers.is_ok_and(|status| status.success()) {
        return Ok(None);
    }
    let port = free_port()?;
    let name = format!("context-injector-{}-{}-{port}", kind.package, std::process::id());
    let named = std::env::var(kind.image_variable).ok().filter(|image| !image.is_empty());
    let image = named.unwrap_or_else(|| kind.image.to_owned());
    let published = format!("127.0.0.1:{port}:{}", kind.port);
    let spec = |arguments: &[&str]| Spec {
        command: std::iter::once(docker.clone().into()).chain(arguments.iter().map(Into::into)).collect(),
        log: scratch.path().join("container.log"),
        container: Some(name.clone()),
        scratch: Some(scratch.path().to_owned()),
        ..Spec::default()
    };
    let first = spec(&[&["run", "--name", &name, "--publish", &published, &image], kind.command].concat());
    let again = spec(&["start", "--attach", &name]);
    Ok(Some((first, again, port)))
}

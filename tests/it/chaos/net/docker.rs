//! The `docker` command, and a network for one run.
//!
//! What a run makes carries the id of its process as a label. Containers end with us, however we end
//! (`servers::watched`); a network that a killed run has left behind is removed by the next one.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use context_injector::servers::watched::Spec;

use crate::world::{LIMIT, eventually};

const LABEL: &str = "context-injector.chaos";
const NEEDED: &str = "networks are cut between containers: docker is needed, and does not answer here (docker version)";

/// Runs `docker`, and returns what it prints.
pub async fn docker(arguments: &[&str]) -> Result<String, String> {
    let mut command = tokio::process::Command::new("docker");
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, command.output()).await.expect("a docker command that ends");
    let output = output.map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(format!("docker {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// A network of this run alone. Dropping it removes it; its containers must have gone before.
pub struct Network {
    name: String,
    /// This machine as the containers see it.
    pub gateway: IpAddr,
}

impl Network {
    /// Makes it, and removes what dead runs have left.
    pub async fn create() -> Network {
        docker(&["version"]).await.unwrap_or_else(|_| panic!("{NEEDED}"));
        sweep().await;
        let name = format!("context-injector-chaos-{}", std::process::id());
        docker(&["network", "create", "--label", &label(), &name]).await.unwrap();
        // From here on it goes when we do.
        let mut network = Network { name, gateway: IpAddr::from([0; 4]) };
        let gateway = "{{ (index .IPAM.Config 0).Gateway }}";
        let gateway = docker(&["network", "inspect", "--format", gateway, &network.name]).await.unwrap();
        network.gateway = gateway.parse().expect("the address of a network's gateway");
        network
    }

    /// The name of a container as docker has it, from its name in this network.
    pub fn container(&self, name: &str) -> String {
        format!("{}-{name}", self.name)
    }

    /// A container that others in this network find by its name; `rest` is its image and its command.
    pub fn spec(&self, name: &str, options: &[&str], rest: &[&str], log: PathBuf) -> Spec {
        let network = ["--network", &self.name, "--network-alias", name, "--hostname", name];
        self.outside(name, &[&network, options].concat(), rest, log)
    }

    /// A container beside this network: the options say which one it is in.
    pub fn outside(&self, name: &str, options: &[&str], rest: &[&str], log: PathBuf) -> Spec {
        let (container, label) = (self.container(name), label());
        let start = ["docker", "run", "--name", &container, "--label", &label];
        Spec {
            command: start.iter().chain(options).chain(rest).map(OsString::from).collect(),
            log,
            container: Some(container),
            ..Spec::default()
        }
    }

    /// The address of a container that is just being started.
    pub async fn address(&self, name: &str) -> IpAddr {
        let (container, format) =
            (self.container(name), "{{ range .NetworkSettings.Networks }}{{ .IPAddress }}{{ end }}");
        eventually(LIMIT, &format!("an address of the container {name}"), async || {
            docker(&["inspect", "--format", format, &container]).await.ok()?.parse().ok()
        })
        .await
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let mut command = std::process::Command::new("docker");
        let _ = command.args(["network", "rm", &self.name]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

fn label() -> String {
    format!("{LABEL}={}", std::process::id())
}

async fn sweep() {
    for (list, remove) in [(&["ps", "--all"][..], &["rm", "-fv"][..]), (&["network", "ls"], &["network", "rm"])] {
        let (filter, format) = (format!("label={LABEL}"), format!("{{{{ .ID }}}} {{{{ .Label \"{LABEL}\" }}}}"));
        let found = docker(&[list, &["--filter", &filter, "--format", &format]].concat()).await.unwrap();
        for (id, run) in found.lines().filter_map(|line| line.split_once(' ')) {
            if !Path::new("/proc").join(run).exists() {
                // Another run may be sweeping as well.
                let _ = docker(&[remove, &[id]].concat()).await;
            }
        }
    }
}

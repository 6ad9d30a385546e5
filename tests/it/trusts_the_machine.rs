//! The platform behind TLS: whom the machine trusts is spoken to, anybody else gets nothing.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::world::World;

/// A certificate authority that nobody knows, and the settings of a server of that name with a certificate of it.
fn authority(name: &str) -> (String, ServerConfig) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, format!("authority of {name}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec![name.to_owned()];
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let server = server.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
    (authority.pem(), server)
}

/// TLS in front of `behind`, for all connections that come. The address of it.
async fn in_front_of(behind: String, server: ServerConfig) -> String {
    let (listener, acceptor) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), TlsAcceptor::from(Arc::new(server)));
    let address = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((outside, _)) = listener.accept().await {
            let (acceptor, behind) = (acceptor.clone(), behind.clone());
            tokio::spawn(async move {
                let mut outside = acceptor.accept(outside).await?;
                let mut inside = TcpStream::connect(behind).await?;
                tokio::io::copy_bidirectional(&mut outside, &mut inside).await
            });
        }
    });
    address
}

#[tokio::test]
async fn a_platform_whose_certificate_the_machine_trusts_is_written_to_and_no_other() {
    let mut world = World::new().await;
    let platform = world.sandbox.url().trim_start_matches("http://").to_owned();
    let (authority, server) = authority("127.0.0.1");
    let (of_another, another) = self::authority("127.0.0.2");
    let (url, url_of_another) = (in_front_of(platform.clone(), server).await, in_front_of(platform, another).await);
    let (conversation, directory) = (world.conversation(), world.directory("tls"));
    let job = directory.join("job.json");
    let [one, other] = ["one.pem", "other.pem"].map(|name| directory.join(name));
    let body = json!({"job_id": "tls", "conversation_id": conversation, "variables": {"tier": {"value": "premium"}}});
    std::fs::write(&job, body.to_string()).unwrap();
    std::fs::write(&one, authority).unwrap();
    std::fs::write(&other, of_another).unwrap();

    for (url, why) in [(&url, "UnknownIssuer"), (&url_of_another, "not valid for name")] {
        world.change_settings(|setup| {
            setup.set("bots.default.base_url", url.as_str());
        });
        let (status, text) = inject(&world, &job, &other).await;
        assert_eq!(status, 1, "{text}");
        assert!(text.contains("invalid peer certificate") && text.contains(why), "{text}");
    }
    assert_eq!(world.sandbox.stats().token_requests, 0, "nothing was sent to whom nobody trusts");

    world.change_settings(|setup| {
        setup.set("bots.default.base_url", url.as_str());
    });
    let (status, text) = inject(&world, &job, &one).await;
    assert_eq!(status, 0, "{text}");
    assert_eq!(world.value(&conversation, "tier").await, "premium");
}

/// `inject --direct` on a machine that trusts this authority alone.
async fn inject(world: &World, job: &Path, trusted: &Path) -> (i32, String) {
    world.command_in(&[("SSL_CERT_FILE", trusted.as_os_str())], &["inject", job.to_str().unwrap(), "--direct"]).await
}

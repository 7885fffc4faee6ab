//! TLS, with certificates made for the trial.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use super::{has, headwater, start, within};
use crate::harness::certificates::Authority;
use crate::harness::scene::{Outcome, Scene, block_on};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("server/tls", || block_on(tls())),
        Trial::test("server/mutual_tls", || block_on(mutual_tls())),
    ]
}

fn path(scene: &Scene, name: &str) -> String {
    scene.file(name).display().to_string()
}

const ASK: [&str; 4] = ["--format", "csv", "-qc", "SELECT 1 AS one"];

/// A client that knows who vouches for the server is let in, others find out why not.
async fn tls() -> Outcome<()> {
    let scene = Scene::new(&[]).await?;
    Authority::new(&scene, "other")?;
    Authority::new(&scene, "ca")?.vouch(&scene, "server", "127.0.0.1")?;
    let (certificate, key) = (path(&scene, "server.pem"), path(&scene, "server.key"));
    let arguments = [
        "--tls-certificate",
        &certificate,
        "--tls-key",
        &key,
        "--token",
        "secret",
    ];
    let (mut server, url) = start(&scene, &arguments).await?;
    has(&url, &["grpc+tls://"])?;
    let token = [("HEADWATER_TOKEN", "secret")];
    let ask = |url: &str, arguments: &[&str]| headwater(url, &[arguments, &ASK].concat(), &token);
    let found = ask(&url, &["--tls-ca", &path(&scene, "ca.pem")])?;
    if found.stdout != "one\n1\n" || found.code != Some(0) {
        return Err(format!("{found:?}").into());
    }
    let plain = url.replace("grpc+tls", "grpc");
    for (url, arguments, words) in [
        (
            &url,
            &["--tls-ca", &path(&scene, "other.pem")][..],
            &["can't connect", "certificate"][..],
        ),
        (&url, &[], &["can't connect", "--tls-ca"]),
        (&url, &["--tls-ca", "/nowhere.pem"], &["/nowhere.pem"]),
        (&plain, &[], &["can't connect", "grpc+tls://"]),
        (
            &plain,
            &["--tls-ca", &path(&scene, "ca.pem")],
            &["not encrypted"],
        ),
    ] {
        let started = Instant::now();
        let found = ask(url, arguments)?;
        has(&found.stderr, words)?;
        within(started, Duration::from_secs(12))?;
        if found.code != Some(1) {
            return Err(format!("{found:?}").into());
        }
    }
    server.terminate().await
}

/// Where clients need a certificate, those without are not let in.
async fn mutual_tls() -> Outcome<()> {
    let scene = Scene::new(&[]).await?;
    let authority = Authority::new(&scene, "ca")?;
    authority.vouch(&scene, "server", "127.0.0.1")?;
    authority.vouch(&scene, "client", "client")?;
    Authority::new(&scene, "other")?.vouch(&scene, "stranger", "client")?;
    let file = |name: &str| path(&scene, name);
    let arguments = [
        "--tls-certificate",
        &file("server.pem"),
        "--tls-key",
        &file("server.key"),
        "--tls-client-ca",
        &file("ca.pem"),
    ];
    let (mut server, url) = start(&scene, &arguments).await?;
    let ask = |who: Option<&str>| {
        let mut arguments = vec!["--tls-ca".to_string(), file("ca.pem")];
        if let Some(who) = who {
            arguments.extend(["--tls-certificate".to_string(), file(&format!("{who}.pem"))]);
            arguments.extend(["--tls-key".to_string(), file(&format!("{who}.key"))]);
        }
        let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        arguments.extend(ASK);
        headwater(&url, &arguments, &[])
    };
    let found = ask(Some("client"))?;
    if found.stdout != "one\n1\n" || found.code != Some(0) {
        return Err(format!("{found:?}").into());
    }
    for who in [None, Some("stranger")] {
        let found = ask(who)?;
        has(&found.stderr, &["can't connect", "--tls-certificate"])?;
        if found.code != Some(1) {
            return Err(format!("{who:?}: {found:?}").into());
        }
    }
    server.terminate().await
}

//! Tests of a running server under all attacks of the load test at once: another caller's ordinary calls are still answered.

use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::{Value, json};

#[path = "../../loadtest/src/attack/mod.rs"]
mod thrown;

use crate::patience::{client, eventually};
use crate::process::Server;
use thrown::{ATTACKS, Attacker, Size, Way};

const ATTACKERS_KEY: &str = "attacker-attacker-attacker-attack";
const OTHERS_KEY: &str = "ordinary-ordinary-ordinary-ordina";

/// The scale of the attacks. The server refuses a body of 800 kB as it refuses one of 8 MB.
const SIZE: Size = Size(0.1);

/// The least number of ordinary calls. They go on until every attack has been answered.
const CALLS: usize = 24;

/// The bound of the process' peak memory in MiB.
const MOST_MIB: u64 = 1536;

fn write_keys(path: &Path) {
    use std::io::Write;
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    writeln!(
        file.unwrap(),
        "attacker:{ATTACKERS_KEY}\nordinary:{OTHERS_KEY}"
    )
    .unwrap();
}

/// Returns the peak of a process' resident memory in MiB.
fn peak_mib(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kib.parse::<u64>().unwrap() / 1024
}

#[test]
fn all_attacks_at_once_leave_others_their_answers_and_the_server_its_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (keys, data) = (dir.path().join("keys"), dir.path().join("data"));
    write_keys(&keys);
    let arguments = [
        "--api-key-file",
        keys.to_str().unwrap(),
        "--data-dir",
        data.to_str().unwrap(),
    ];
    let mut server = Server::start(&arguments);
    let address: SocketAddr = server
        .url("")
        .trim_start_matches("http://")
        .parse()
        .unwrap();
    let client = client();
    let ask = |path: &str, body: &Value| {
        let call = client
            .post(server.url(path))
            .header("x-api-key", OTHERS_KEY);
        let answer = call.json(body).send().unwrap();
        let status = answer.status().as_u16();
        let answer: Value = answer.json().unwrap();
        assert_eq!(status, 200, "{path} {body}: {answer}");
        answer
    };
    let ordinary = |number: usize| {
        let prompt = format!("What is {number} plus 28?");
        match number % 3 {
            0 => ask(
                "/judge",
                &json!({"prompt": prompt, "candidates": ["62", "52"]}),
            ),
            1 => ask(
                "/generate",
                &json!({"prompt": prompt, "log": {"retain": true}}),
            ),
            _ => ask(
                "/v1/completions",
                &json!({"prompt": prompt, "max_tokens": 16}),
            ),
        };
    };
    ordinary(0);
    let attackers: Vec<Attacker> = ATTACKS
        .iter()
        .map(|attack| Attacker::start(attack, SIZE, ATTACKERS_KEY, address))
        .collect();
    let mut number = 1;
    eventually("an answer to every attack", || {
        for _ in 0..CALLS / 4 {
            ordinary(number);
            number += 1;
        }
        let answered = |(attack, attacker): (&thrown::Attack, &Attacker)| {
            attack.way != Way::Read || !attacker.heard().is_empty()
        };
        let all = ATTACKS.iter().zip(&attackers).all(answered);
        (all && number > CALLS).then_some(())
    });
    for (attack, attacker) in ATTACKS.iter().zip(attackers) {
        let heard = attacker.stop();
        assert!(!heard.contains_key("500"), "{}: {heard:?}", attack.name);
    }
    ordinary(number);
    assert_eq!(
        client.get(server.url("/health")).send().unwrap().status(),
        200
    );
    let peak = peak_mib(server.id());
    assert!(peak < MOST_MIB, "the peak memory was {peak} MiB");
    server.signal(libc::SIGTERM);
    assert!(server.wait().success());
}

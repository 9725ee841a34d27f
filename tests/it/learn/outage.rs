//! Tests of a database that fails while the program serves and learns, and later works again.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;

use crate::log::Operator;

use super::support::{LEARN, Program, Setup, question, wait_for};

/// The variable with the URL of a PostgreSQL server on which schemas may be made.
const POSTGRES: &str = "SELFJUDGE_TEST_POSTGRES";

/// A proxy of a database that listens on a socket in a directory. Its connections can be cut and allowed again.
struct Cable {
    port: u16,
    joined: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl Cable {
    fn to(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let cable = Self {
            port: listener.local_addr().unwrap().port(),
            joined: Arc::new(AtomicBool::new(true)),
            connections: Arc::default(),
        };
        let (joined, connections) = (Arc::clone(&cable.joined), Arc::clone(&cable.connections));
        // The thread ends with the test's process.
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if joined.load(Ordering::SeqCst) {
                    let far = UnixStream::connect(&socket).unwrap();
                    connections.lock().unwrap().push(near.try_clone().unwrap());
                    let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                    std::thread::spawn(move || pass(near, far));
                    std::thread::spawn(move || pass(far_too, near_too));
                }
            }
        });
        cable
    }

    /// Breaks every connection. New ones are closed at once.
    fn cut(&self) {
        self.joined.store(false, Ordering::SeqCst);
        for connection in self.connections.lock().unwrap().drain(..) {
            // The connection may have been closed already.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    fn join(&self) {
        self.joined.store(true, Ordering::SeqCst);
    }
}

/// Copies bytes until either side is closed.
fn pass(mut from: impl Read, mut to: impl Write) {
    let mut piece = [0; 8192];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        if to.write_all(&piece[..count]).is_err() {
            return;
        }
    }
}

/// Returns the directory of the server's socket, if the URL names one.
fn socket_of(url: &str) -> Option<PathBuf> {
    let dir = url.split_once("?host=")?.1.split('&').next()?;
    Some(PathBuf::from(dir).join(".s.PGSQL.5432"))
}

#[test]
#[cfg_attr(
    not(has_postgres),
    ignore = "needs PostgreSQL: SELFJUDGE_REQUIRE=postgres, SELFJUDGE_TEST_POSTGRES"
)]
fn a_database_that_goes_away_stops_learning_and_not_serving_until_it_is_back() {
    let server = std::env::var(POSTGRES).expect("SELFJUDGE_REQUIRE lists postgres");
    let socket = socket_of(&server).expect("the server has a socket in a directory");
    let cable = Cable::to(socket);
    let database = format!("outage_{:016x}", rand::random::<u64>());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut operator = Operator::connect(&server).await;
        operator.run(&format!("CREATE DATABASE {database}")).await;
        operator.close().await;
    });
    let url = format!("postgres://postgres@127.0.0.1:{}/{database}", cable.port);
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup {
        arguments: &["--log-url", &url, "--on-log-failure", "serve-unlogged"],
        ..Setup::learning(dir.path(), LEARN)
    };
    let program = Program::start(&setup);
    program.admin_post("/train/pause", &json!({}));
    let acknowledged: Vec<String> = (0..40).map(|number| program.ask(number)).collect();
    program.admin_post("/train/resume", &json!({}));
    wait_for("the first update", || {
        let updates = program.admin_get("/train")["updates"].as_u64();
        (updates.unwrap() > 0).then_some(())
    });

    cable.cut();
    for number in 0..3 {
        let answer = program.post("/generate", &question(number));
        assert_eq!(answer["outputs"].as_array().unwrap().len(), 1, "{answer}");
    }
    wait_for("the learner to report the outage", || {
        (program.admin_get("/train")["state"] == "failed").then_some(())
    });
    let answer = program.post("/generate", &question(3));
    assert!(
        answer["record_id"].is_null(),
        "the server promised a record without a database: {answer}"
    );

    cable.join();
    let served = wait_for("an answer of a promoted stage", || {
        let answer = program.post("/generate", &question(4));
        (answer["version"] != "base").then_some(answer)
    });
    assert_eq!(served["version"], json!(program.policy()));
    let again = served["record_id"].as_str().map(str::to_owned);
    for id in acknowledged.iter().chain(&again) {
        assert_eq!(program.get(&format!("/records/{id}")).0, 200, "{id}");
    }
    assert!(again.is_some(), "records must be written again: {served}");
    let trail = program.admin_get("/events?verify=true");
    assert_eq!(trail["valid"], true, "{trail}");
    program.stop();
}

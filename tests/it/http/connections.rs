//! Tests of slow connections over sockets, as the program serves them.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use axum_server::Handle;
use engine::TenantShare;
use selfjudge::http::{BodyTimeouts, ConnectionLimits, ConnectionTimeouts, serve};

use super::refusing::until;
use super::*;
use crate::patience::until_quick_enough;

/// A timeout that no test reaches.
const PATIENCE: Duration = Duration::from_secs(120);

/// A timeout that tests wait for.
const SHORT: Duration = Duration::from_millis(150);

fn listening(server: &Router, limits: &ConnectionLimits) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let _entered = RUNTIME.enter();
    serve(listener, server.clone(), None, Handle::new(), limits).unwrap();
    address
}

fn limits(change: impl FnOnce(&mut ConnectionTimeouts)) -> ConnectionLimits {
    let mut timeouts = ConnectionTimeouts {
        headers: PATIENCE,
        idle: PATIENCE,
        unread: PATIENCE,
    };
    change(&mut timeouts);
    ConnectionLimits {
        timeouts,
        ..ConnectionLimits::default()
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Reads until the connection is closed or reset.
fn until_closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut came = Vec::new();
    match stream.read_to_end(&mut came) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
    came
}

/// Reads the head of an answer, and its body by `content-length`.
fn answer(stream: &mut TcpStream) -> String {
    let mut came = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        came.push(byte[0]);
        if came.ends_with(b"\r\n\r\n") {
            break;
        }
    }
    let head = String::from_utf8(came).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.unwrap().parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    head + &String::from_utf8(body).unwrap()
}

fn post_head(path: &str, length: usize) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n")
}

fn posting(path: &str, body: &Value) -> String {
    let body = body.to_string();
    post_head(path, body.len()) + &body
}

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n";

#[test]
fn headers_that_do_not_come_close_the_connection_and_before_the_first_request_so_does_silence() {
    let address = listening(&SERVER, &limits(|timeouts| timeouts.headers = SHORT));
    for begun in [
        &b""[..],
        b"G",
        b"GET /health HTTP/1.1\r\nhost: x\r\n",
        b"\r\n",
    ] {
        let mut stream = connect(address);
        stream.write_all(begun).unwrap();
        assert_eq!(until_closed(&mut stream), b"", "{begun:?}");
    }
    // The timeout holds for a later request as for the first.
    let address = listening(&SERVER, &limits(|timeouts| timeouts.headers = 20 * SHORT));
    let mut stream = connect(address);
    stream.write_all(HEALTH).unwrap();
    assert!(answer(&mut stream).starts_with("HTTP/1.1 200"));
    stream.write_all(b"GET /hea").unwrap();
    assert_eq!(until_closed(&mut stream), b"");
}

#[test]
fn an_idle_connection_is_closed_and_one_that_is_used_is_not() {
    let address = listening(&SERVER, &limits(|timeouts| timeouts.idle = SHORT));
    let mut stream = connect(address);
    stream.write_all(HEALTH).unwrap();
    assert!(answer(&mut stream).starts_with("HTTP/1.1 200"));
    assert_eq!(until_closed(&mut stream), b"");

    let address = listening(&SERVER, &limits(|timeouts| timeouts.headers = SHORT));
    let mut stream = connect(address);
    for pause in [Duration::ZERO, 3 * SHORT] {
        // The second pause is longer than headers may take.
        std::thread::sleep(pause);
        stream.write_all(HEALTH).unwrap();
        assert!(answer(&mut stream).starts_with("HTTP/1.1 200"));
    }
}

#[test]
fn an_answer_that_takes_its_time_is_not_cut_off() {
    let address = listening(
        &SERVER,
        &limits(|timeouts| {
            (timeouts.headers, timeouts.idle, timeouts.unread) = (SHORT, SHORT, SHORT)
        }),
    );
    let body =
        json!({"prompt": "What is 34 plus 28?", "ignore_eos": true, "max_tokens": 400, "n": 64});
    let mut stream = connect(address);
    stream
        .write_all(posting("/generate", &body).as_bytes())
        .unwrap();
    let answer = answer(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Returns a call whose answer has megabytes.
fn large(stream: bool) -> Value {
    json!({"prompt": "What is 34 plus 28?", "ignore_eos": true, "max_tokens": 480, "n": 48, "logprobs": 20, "stream": stream})
}

#[test]
fn an_answer_that_nobody_reads_holds_its_place_until_it_is_closed() {
    for stream in [true, false] {
        let config = HttpConfig {
            max_requests: 1,
            ..HttpConfig::default()
        };
        let server = start(&engine(), &config);
        let short = json!({"prompt": "What is 3 plus 4?", "max_tokens": 1});
        let status = async || {
            let answer = call(&server, "/generate", short.to_string()).await;
            answer.status()
        };
        // Without a timeout an unread answer keeps its place, although the engine is idle.
        let address = listening(&server, &limits(|_| ()));
        let mut unread = connect(address);
        unread
            .write_all(posting("/generate", &large(stream)).as_bytes())
            .unwrap();
        RUNTIME.block_on(async {
            until(async || metric(&server, "prompt_tokens_total").await > 0.0).await;
            until(async || metric(&server, "num_requests_running").await == 0.0).await;
            assert_eq!(
                status().await,
                StatusCode::TOO_MANY_REQUESTS,
                "stream: {stream}"
            );
            drop(unread);
            until(async || status().await == StatusCode::OK).await;
        });
        // With a timeout the connection is closed, and so is a stream.
        let address = listening(&server, &limits(|timeouts| timeouts.unread = SHORT));
        let computed = async || metric(&server, "prompt_tokens_total").await;
        let before = RUNTIME.block_on(computed());
        let mut unread = connect(address);
        unread
            .write_all(posting("/generate", &large(stream)).as_bytes())
            .unwrap();
        RUNTIME.block_on(async {
            until(async || computed().await > before).await;
            until(async || status().await == StatusCode::OK).await;
        });
        let came = until_closed(&mut unread);
        assert!(
            !came.ends_with(b"\r\n0\r\n\r\n"),
            "the answer must be cut off"
        );
    }
}

#[test]
fn a_body_that_does_not_come_is_answered_and_frees_its_place() {
    let config = HttpConfig {
        max_requests: 1,
        body_timeouts: BodyTimeouts {
            small: SHORT,
            ..BodyTimeouts::default()
        },
        ..HttpConfig::default()
    };
    let server = start(&engine(), &config);
    let address = listening(&server, &limits(|_| ()));
    let mut stream = connect(address);
    stream
        .write_all(format!("{}{{", post_head("/generate", 100)).as_bytes())
        .unwrap();
    let answer = String::from_utf8(until_closed(&mut stream)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("body_timeout"), "{answer}");
    let (status, _) = RUNTIME.block_on(post_to(&server, "/tokenize", &json!({"text": "x"})));
    assert_eq!(status, StatusCode::OK);
}

#[test]
fn one_address_has_a_share_of_the_connections_and_gets_it_back() {
    let limits = ConnectionLimits {
        max_connections: 4,
        share: TenantShare::default(),
        ..limits(|_| ())
    };
    let address = listening(&SERVER, &limits);
    let mut open = vec![connect(address), connect(address)];
    for stream in &mut open {
        stream.write_all(HEALTH).unwrap();
        assert!(answer(stream).starts_with("HTTP/1.1 200"));
    }
    assert_eq!(until_closed(&mut connect(address)), b"");
    drop(open);
    RUNTIME.block_on(until(async || {
        let mut stream = connect(address);
        // The server may close the connection during the write.
        let _ = stream.write_all(HEALTH);
        let mut first = [0; 12];
        stream
            .read_exact(&mut first)
            .is_ok_and(|()| first == *b"HTTP/1.1 200")
    }));
}

#[test]
fn http_2_is_not_spoken() {
    let address = listening(&SERVER, &limits(|_| ()));
    let mut stream = connect(address);
    // This is the preface of HTTP/2 with prior knowledge, and an empty SETTINGS frame.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    stream.write_all(preface).unwrap();
    let came = until_closed(&mut stream);
    assert!(
        came.is_empty() || came.starts_with(b"HTTP/1.1 4"),
        "{came:?}"
    );
}

/// Reads the final answer, without the interim answers before it.
fn final_answer(stream: &mut TcpStream) -> String {
    let came = String::from_utf8(until_closed(stream)).unwrap();
    came.replace("HTTP/1.1 100 Continue\r\n\r\n", "")
}

#[test]
fn a_client_that_shuts_its_sending_side_gets_its_answer() {
    let address = listening(&SERVER, &limits(|_| ()));
    // This call takes long enough for interim answers.
    let long =
        json!({"prompt": "What is 34 plus 28?", "ignore_eos": true, "max_tokens": 400, "n": 64});
    let short = json!({"prompt": "What is 34 plus 28?", "max_tokens": 8});
    let mut streamed = short.clone();
    streamed["stream"] = json!(true);
    for body in [&short, &streamed, &long] {
        let mut stream = connect(address);
        stream
            .write_all(posting("/generate", body).as_bytes())
            .unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let answer = final_answer(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        let whole = match body == &streamed {
            true => answer.contains("data: [DONE]") && answer.ends_with("\r\n0\r\n\r\n"),
            false => answer.ends_with('}') && answer.contains("\"usage\""),
        };
        assert!(whole, "{answer}");
    }
    let mut stream = connect(address);
    stream.write_all(HEALTH).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert!(final_answer(&mut stream).starts_with("HTTP/1.1 200"));
    // The rest of these requests never arrives.
    for unfinished in [
        "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
        "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-le",
    ] {
        let mut stream = connect(address);
        stream.write_all(unfinished.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let answer = final_answer(&mut stream);
        assert!(!answer.contains("200 OK"), "{answer}");
    }
}

/// Tests a client that closes its connection, and one that has shut its sending side before.
#[test]
fn a_client_that_is_gone_frees_what_it_held() {
    let server = start(&engine(), &HttpConfig::default());
    let address = listening(&server, &limits(|_| ()));
    let body =
        json!({"prompt": "What is 34 plus 28?", "ignore_eos": true, "max_tokens": 480, "n": 128});
    for shut_first in [false, true] {
        RUNTIME.block_on(until_quick_enough(async || {
            let before = failures(&server, "aborted").await;
            let started = metric(&server, "prompt_tokens_total").await;
            // One of these calls fills all places.
            let connections: Vec<TcpStream> = (0..3)
                .map(|_| {
                    let mut stream = connect(address);
                    let call = posting("/generate", &body);
                    stream.write_all(call.as_bytes()).unwrap();
                    if shut_first {
                        stream.shutdown(Shutdown::Write).unwrap();
                    }
                    stream
                })
                .collect();
            until(async || metric(&server, "prompt_tokens_total").await > started).await;
            drop(connections);
            until(async || metric(&server, "num_requests_running").await == 0.0).await;
            failures(&server, "aborted").await > before
        }));
    }
}

//! Tests of headers: encodings of bodies, keys, and requests of browsers.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use selfjudge::http::Cors;

use super::unchanged::{CHAT, TEXT, text_body};
use super::*;

/// Sends a call with headers and a body of bytes.
fn sent(server: &Router, headers: &[(&str, &str)], body: &[u8]) -> (StatusCode, Value) {
    RUNTIME.block_on(async {
        let mut request = Request::post(TEXT);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.to_vec())).unwrap();
        let response = server.clone().oneshot(request).await.unwrap();
        let status = response.status();
        (status, serde_json::from_str(&text(response).await).unwrap())
    })
}

#[test]
fn bodies_come_packed_marked_and_with_half_characters() {
    let gzip = |bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let plain = text_body().to_string();
    let expected = ok(TEXT, &text_body());
    let marked = format!("\u{FEFF}{plain}");
    for (headers, body) in [
        (&[("content-encoding", "gzip")][..], gzip(plain.as_bytes())),
        (
            &[("content-encoding", "identity")],
            plain.clone().into_bytes(),
        ),
        (&[], marked.into_bytes()),
    ] {
        let (status, answer) = sent(&SERVER, headers, &body);
        assert_eq!(status, StatusCode::OK, "{answer}");
        assert_eq!(answer["choices"], expected["choices"]);
    }
    // The body has 64 MiB of white space in 64 KiB.
    let bomb = gzip(&[&vec![b' '; 64 << 20][..], plain.as_bytes()].concat());
    for (encoding, body, status, code) in [
        (
            "gzip",
            bomb,
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
        ),
        (
            "gzip",
            plain.clone().into_bytes(),
            StatusCode::BAD_REQUEST,
            "invalid_body",
        ),
        (
            "br",
            plain.into_bytes(),
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_encoding",
        ),
    ] {
        let (refused, answer) = sent(&SERVER, &[("content-encoding", encoding)], &body);
        assert_eq!((refused, &answer["error"]["code"]), (status, &json!(code)));
    }
    let half = br#"{"prompt": "2 plus \ud83d", "seed": 1, "max_tokens": 2}"#;
    let whole = json!({"prompt": "2 plus \u{FFFD}", "seed": 1, "max_tokens": 2});
    let (status, answer) = sent(&SERVER, &[], half);
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(answer["choices"], ok(TEXT, &whole)["choices"]);
}

#[test]
fn keys_are_read_where_clients_put_them() {
    let server = start(&engine(), &keyed());
    let body = text_body().to_string();
    for (headers, status) in [
        (&[("authorization", "Bearer a")][..], 200),
        (&[("x-api-key", "a")], 200),
        // A key of another server stands beside the one of this server.
        (
            &[("x-api-key", "other"), ("authorization", "Bearer a")],
            200,
        ),
        (
            &[("x-api-key", "a"), ("authorization", "Bearer other")],
            200,
        ),
        (
            &[("x-api-key", "other"), ("authorization", "Bearer another")],
            401,
        ),
        (&[("authorization", "Basic a")], 401),
        (&[], 401),
    ] {
        let (got, answer) = sent(&server, headers, body.as_bytes());
        assert_eq!(got.as_u16(), status, "{headers:?}: {answer}");
    }
    RUNTIME.block_on(async {
        let response = call(&server, TEXT, body).await;
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
    });
}

#[test]
fn browsers_may_send_the_headers_of_openais_client() {
    let config = HttpConfig {
        cors: Cors::Any,
        ..HttpConfig::default()
    };
    let server = start(&engine(), &config);
    let asked = "authorization,content-type,x-stainless-arch,x-stainless-os,x-stainless-retry-count,x-stainless-timeout";
    RUNTIME.block_on(async {
        let request = Request::options(CHAT)
            .header("origin", "https://page.example")
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", asked);
        let request = request.body(Body::empty()).unwrap();
        let response = server.clone().oneshot(request).await.unwrap();
        assert!(response.status().is_success());
        assert_eq!(response.headers()["access-control-allow-headers"], asked);
        assert_eq!(response.headers()["access-control-allow-origin"], "*");
    });
}

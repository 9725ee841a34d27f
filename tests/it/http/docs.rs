//! Tests of `/docs`: the page loads only files that are part of the program.

use axum::http::header::CONTENT_TYPE;
use regex::Regex;

use super::*;

fn fetched(path: &str) -> (StatusCode, String, String) {
    fetched_from(&SERVER, path, "*/*")
}

fn fetched_from(server: &Router, path: &str, accept: &str) -> (StatusCode, String, String) {
    RUNTIME.block_on(async {
        let request = Request::get(path)
            .header("accept", accept)
            .header("host", "127.0.0.1");
        let request = request.body(Body::empty()).unwrap();
        let response = server.clone().oneshot(request).await.unwrap();
        let kind = response.headers().get(CONTENT_TYPE);
        let kind = kind.map_or_else(String::new, |kind| kind.to_str().unwrap().to_owned());
        let status = response.status();
        let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, kind, String::from_utf8_lossy(&bytes).into_owned())
    })
}

/// Returns whether a text of this kind names a host where a browser would load from it.
fn loads_from_a_host(kind: &str, text: &str) -> bool {
    const HOST: &str = r#"\s*["'`]?\s*(?:https?:)?//"#;
    let places = match kind {
        _ if kind.starts_with("text/html") => r"(?:\bsrc|\bhref|\baction|\bdata)\s*=",
        _ if kind.starts_with("text/css") => r"(?:url\(|@import)",
        _ if kind.contains("javascript") => {
            r"(?:\bsrc\s*[:=]|\bimport\s*\(|\bfrom\b|\bimportScripts\s*\(|\bnew Worker\s*\()"
        }
        _ => return false,
    };
    Regex::new(&format!("{places}{HOST}"))
        .unwrap()
        .is_match(text)
}

#[test]
fn the_question_finds_what_it_asks_for() {
    for (kind, text) in [
        ("text/html", r#"<script src="https://cdn.example/a.js">"#),
        ("text/html", "<link href='//cdn.example/a.css'>"),
        (
            "text/css",
            "a { background: url(http://cdn.example/a.png) }",
        ),
        ("text/css", r#"@import "https://cdn.example/a.css""#),
        ("text/javascript", r#"import("https://cdn.example/a.js")"#),
        (
            "text/javascript",
            r#"import a from "https://cdn.example/a.js""#,
        ),
        ("text/javascript", r#"script.src="//cdn.example/a.js""#),
    ] {
        assert!(loads_from_a_host(kind, text), "{text}");
    }
    assert!(!loads_from_a_host("text/html", r#"<script src="./a.js">"#));
}

#[test]
fn the_page_and_all_that_it_loads_are_part_of_the_program() {
    let (status, kind, page) = fetched("/docs/");
    assert_eq!(status, StatusCode::OK);
    assert!(
        kind.starts_with("text/html") && !loads_from_a_host(&kind, &page),
        "{page}"
    );
    let named = Regex::new(r#"(?:src|href)\s*=\s*"([^"]*)""#).unwrap();
    let named: Vec<&str> = named
        .captures_iter(&page)
        .map(|found| found.get(1).unwrap().as_str())
        .collect();
    assert!(named.len() >= 6, "{named:?}");
    let mut all = String::new();
    for name in named {
        let (status, kind, text) = fetched(&format!("/docs/{}", name.trim_start_matches("./")));
        assert_eq!(status, StatusCode::OK, "{name}");
        assert!(!kind.is_empty() && !text.is_empty(), "{name}");
        assert!(!loads_from_a_host(&kind, &text), "{name}");
        all.push_str(&text);
    }
    // The page fetches the description from this server, and no host validates it.
    assert!(all.contains(r#""url": "/openapi.json""#));
    assert!(all.contains(r#""validatorUrl": "none""#));
    assert_eq!(fetched("/openapi.json").0, StatusCode::OK);
}

/// The `accept` header of a browser.
const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

#[test]
fn the_signpost_of_each_listener_is_a_page_for_browsers_and_json_for_others() {
    let logged = logged(&HttpConfig::default(), TrafficConfig::default());
    let named = Regex::new(r#"href="([^"]*)""#).unwrap();
    for (server, title, own, others) in [
        (
            &logged.server,
            "selfjudge",
            "POST /v1/responses",
            "GET /train",
        ),
        (
            &logged.admin,
            "selfjudge, for operators",
            "GET /train",
            "POST /v1/responses",
        ),
    ] {
        let (status, kind, page) = fetched_from(server, "/", BROWSER);
        assert_eq!(status, StatusCode::OK);
        assert!(
            kind.starts_with("text/html") && page.starts_with("<!doctype html>"),
            "{kind}: {page}"
        );
        assert!(
            page.contains(&format!("<title>{title}: pocket</title>")),
            "{page}"
        );
        assert!(
            page.contains(&format!("<code>{own}</code>")) && !page.contains(others),
            "{page}"
        );
        assert!(!loads_from_a_host(&kind, &page), "{page}");
        let (status, kind, said) = fetched_from(server, "/", "*/*");
        assert_eq!(status, StatusCode::OK);
        assert!(kind.starts_with("application/json"), "{kind}");
        let said: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(
            (&said["name"], &said["model"]),
            (&json!(title), &json!("pocket"))
        );
        let routes = said["routes"].as_array().unwrap();
        assert!(
            routes.contains(&json!(own)) && !routes.contains(&json!(others)),
            "{routes:?}"
        );
        // Every link of the page has an answer.
        let places: Vec<&str> = named
            .captures_iter(&page)
            .map(|found| found.get(1).unwrap().as_str())
            .collect();
        assert!(places.len() >= 4, "{page}");
        for place in places {
            let (status, _, text) = fetched_from(server, place, BROWSER);
            assert_eq!(status, StatusCode::OK, "{place}: {text}");
        }
    }
}

#[test]
fn the_operators_listener_documents_its_own_operations() {
    let logged = logged(&HttpConfig::default(), TrafficConfig::default());
    let (status, kind, page) = fetched_from(&logged.admin, "/docs/", BROWSER);
    assert_eq!(status, StatusCode::OK);
    assert!(
        kind.starts_with("text/html") && page.contains("<title>selfjudge: the API</title>"),
        "{page}"
    );
    let (status, _, description) = fetched_from(&logged.admin, "/openapi.json", "*/*");
    assert_eq!(status, StatusCode::OK);
    let description: Value = serde_json::from_str(&description).unwrap();
    let paths = description["paths"].as_object().unwrap();
    for path in [
        "/train",
        "/train/pause",
        "/train/abandon",
        "/generations",
        "/events",
        "/principles",
        "/metrics",
        "/health",
    ] {
        assert!(paths.contains_key(path), "{path}");
        // The page offers GET for these paths. Operations that change state have other methods.
        if description["paths"][path].get("get").is_some() {
            let (status, _, answer) = fetched_from(&logged.admin, path, BROWSER);
            assert_eq!(status, StatusCode::OK, "{path}: {answer}");
        }
    }
    assert!(!paths.contains_key("/generate") && !paths.contains_key("/v1/responses"));
    let script = fetched_from(&logged.admin, "/docs/swagger-initializer.js", "*/*");
    assert!(
        script.0 == StatusCode::OK && script.2.contains(r#""url": "/openapi.json""#),
        "{}",
        script.2
    );
}

#[test]
fn the_signpost_lists_the_routes_that_answer() {
    let config = HttpConfig::default();
    let metrics = Metrics::new("pocket");
    let state = Shared::new(SERVICE.clone(), "pocket", metrics, &config).into_state();
    let bare = admin_router(state, &config);
    let logged = logged(&config, TrafficConfig::default());
    let mut silent = 0;
    for server in [&*SERVER, &bare, &logged.server, &logged.admin] {
        let (_, _, said) = fetched_from(server, "/", "*/*");
        let said: Value = serde_json::from_str(&said).unwrap();
        let listed: Vec<&str> = (said["routes"].as_array().unwrap().iter())
            .map(|route| route.as_str().unwrap())
            .collect();
        let (_, _, description) = fetched_from(server, "/openapi.json", "*/*");
        let description: Value = serde_json::from_str(&description).unwrap();
        for (path, item) in description["paths"].as_object().unwrap() {
            for method in item.as_object().unwrap().keys() {
                let method = method.to_uppercase();
                let request = Request::builder()
                    .method(&*method)
                    .uri(path.replace("{id}", "01ARZ3NDEKTSV4RRFFQ69G5FAV"))
                    .header("content-type", "application/json")
                    .header("host", "127.0.0.1");
                let body = match &*method {
                    "GET" | "DELETE" => Body::empty(),
                    _ => Body::from(
                        match path.as_str() {
                            "/feedback" => {
                                json!({"record_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "thumbs": "up"})
                            }
                            _ => json!({"expected": "base"}),
                        }
                        .to_string(),
                    ),
                };
                let answer = RUNTIME.block_on(async {
                    let request = request.body(body).unwrap();
                    text(server.clone().oneshot(request).await.unwrap()).await
                });
                let lacks = ["no_log", "not_learning", "no_generations"]
                    .iter()
                    .any(|code| answer.contains(&format!("\"code\":\"{code}\"")));
                let route = format!("{method} {path}");
                assert_eq!(!lacks, listed.contains(&&*route), "{route}: {answer}");
                silent += usize::from(lacks);
            }
        }
    }
    assert!(silent >= 10, "{silent}");
}

//! The index at `/`: the routes that this server answers.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{Html, IntoResponse, Response};
use serde_json::json;

use super::AppState;
use super::docs_page;
use super::listeners::Listener;

/// The part of the program that an operation needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Log,
    /// Generations, which may also be another process's.
    Generations,
    Learner,
}

/// Returns what the operations of a path need in order to answer.
fn needs(path: &str) -> Needs {
    match path.split('/').nth(1) {
        Some("records" | "feedback" | "events") => Needs::Log,
        Some("generations") => Needs::Generations,
        Some("train") => Needs::Learner,
        _ => Needs::Nothing,
    }
}

/// Returns whether the server has what the operations of a path need.
fn answers(state: &AppState, path: &str) -> bool {
    let learning = state.learning.as_ref();
    match needs(path) {
        Needs::Nothing => true,
        Needs::Log => state.traffic().log.is_some(),
        Needs::Generations => learning.is_some(),
        Needs::Learner => learning.is_some_and(|learning| learning.control.is_some()),
    }
}

/// Returns the index of the routes that answer.
pub async fn signpost(
    listener: Listener,
    State(state): State<AppState>,
    headers: HeaderMap,
) -> Response {
    let routes: Vec<String> = listener
        .operations()
        .filter(|(_, path)| answers(&state, path))
        .map(|(method, path)| format!("{method} {path}"))
        .collect();
    let judges = state
        .service
        .judge()
        .self_test()
        .map(|test| test.reliable());
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok());
    if !accept.is_some_and(|accept| accept.contains("text/html")) {
        return Json(json!({
            "name": listener.title(),
            "program_version": env!("CARGO_PKG_VERSION"),
            "model": &*state.model_name,
            "judge_reliable": judges,
            "docs": docs_page::PATH,
            "openapi": "/openapi.json",
            "routes": routes,
        }))
        .into_response();
    }
    let warning = match judges {
        Some(false) => {
            "<p><strong>The served model failed its self-test as a judge:</strong> its verdicts are marked <code>reliable: \
             false</code>.</p>"
        }
        _ => "",
    };
    let routes: String = routes
        .iter()
        .map(|route| format!("<li><code>{}</code></li>", escaped(route)))
        .collect();
    let docs = docs_page::PATH.map_or(String::new(), |path| {
        format!("<a href=\"{path}/\">Documentation, with examples to try</a> · ")
    });
    let (title, model) = (listener.title(), escaped(&state.model_name));
    Html(format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}: {model}</title></head><body>\
         <h1>{title}</h1><p>Model: <code>{model}</code>, version {}.</p>{warning}\
         <p>{docs}<a href=\"/openapi.json\">OpenAPI description</a> · \
         <a href=\"/ready\">Readiness</a> · <a href=\"/metrics\">Metrics</a></p><ul>{routes}</ul></body></html>",
        env!("CARGO_PKG_VERSION"),
    ))
    .into_response()
}

/// Escapes a text for HTML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

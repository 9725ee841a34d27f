//! Additions to the API description that are not derived from handlers and bodies: examples of all answers, and descriptions of statuses
//! and of tags that distinguish bodies of the same name.

use std::sync::LazyLock;

use serde_json::Value;
use utoipa::Modify;
use utoipa::openapi::{OpenApi, PathItem, RefOr, Schema, path::Operation};

/// Examples by operation, status and content type; under `*` those of operations without their own. They are true answers of a server,
/// recorded by openapi/make_examples.py.
static ANSWERS: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../../openapi/examples.json"))
        .expect("openapi/examples.json is JSON; this is a bug")
});

/// Adds an example to every answer.
pub struct Answers;

impl Modify for Answers {
    fn modify(&self, api: &mut OpenApi) {
        for (path, item) in &mut api.paths.paths {
            for (method, operation) in operations(item) {
                add(operation, &format!("{method} {path}"));
            }
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    [
        ("GET", &mut item.get),
        ("PUT", &mut item.put),
        ("POST", &mut item.post),
        ("DELETE", &mut item.delete),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

fn add(operation: &mut Operation, name: &str) {
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else {
            continue;
        };
        if response.description.is_empty() {
            response.description = meaning(status).to_owned();
        }
        for (kind, content) in &mut response.content {
            let RefOr::T(content) = content else {
                continue;
            };
            let of = |operation: &str| ANSWERS.get(operation)?.get(status)?.get(kind).cloned();
            content.example = of(name).or_else(|| of("*"));
        }
    }
}

/// Returns the description of a status that the handler does not describe.
fn meaning(status: &str) -> &'static str {
    match status.as_bytes().first() {
        Some(b'4') => {
            "The call is refused: `message` says why, and `param` names the parameter at fault."
        }
        Some(b'5') => "The server cannot answer, or not in time.",
        _ => "The answer.",
    }
}

/// Adds descriptions of the tags of bodies, which the derived description lacks.
pub struct Tags;

impl Modify for Tags {
    fn modify(&self, api: &mut OpenApi) {
        let components = api.components.iter_mut();
        let schemas = components.flat_map(|components| components.schemas.values_mut());
        for schema in schemas {
            let RefOr::T(Schema::OneOf(one_of)) = schema else {
                continue;
            };
            for item in &mut one_of.items {
                let RefOr::T(Schema::Object(object)) = item else {
                    continue;
                };
                let Some(RefOr::T(Schema::Object(tag))) = object.properties.get_mut("type") else {
                    continue;
                };
                if let (None, Some([value])) = (&tag.description, tag.enum_values.as_deref()) {
                    tag.description = Some(format!("Always {value}."));
                }
            }
        }
    }
}

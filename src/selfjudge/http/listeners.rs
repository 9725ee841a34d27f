//! The listeners: the operations of each, and the errors for routes that are missing.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::http::{Method, StatusCode};
use axum::routing::get;
use utoipa::openapi::path::{Operation, PathItem};

use super::AppState;
use super::api_doc::api_doc;
use super::docs_page;
use super::error::ApiError;
use super::signpost::signpost;

/// The purpose of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// For callers, including the operators' routes if there are operators' keys.
    Common { operators: bool },
    /// For operators only.
    Operators,
    /// For metrics only.
    Metrics,
}

/// Who may call an operation, and on which listeners it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    Callers,
    Operators,
    /// Callers, and on the operators' listener.
    Both,
    /// All clients, on every listener.
    All,
}

/// Operations on the operators' listener besides those of the `admin` tag.
const BOTH: [(&str, &str); 3] = [
    ("DELETE", "/records"),
    ("DELETE", "/records/{id}"),
    ("GET", "/principles"),
];

/// An operation of the API.
#[derive(Debug)]
struct Known {
    method: &'static str,
    path: String,
    whose: For,
}

/// All operations in the description.
static KNOWN: LazyLock<Vec<Known>> = LazyLock::new(|| {
    let mut known = Vec::new();
    for (path, item) in api_doc().paths.paths {
        for (method, operation) in operations(&item) {
            known.push(Known {
                method,
                whose: whose(method, &path, operation),
                path: path.clone(),
            });
        }
    }
    known
});

fn operations(item: &PathItem) -> impl Iterator<Item = (&'static str, &Operation)> {
    [
        ("GET", &item.get),
        ("PUT", &item.put),
        ("POST", &item.post),
        ("DELETE", &item.delete),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation.as_ref()?)))
}

fn whose(method: &str, path: &str, operation: &Operation) -> For {
    let tagged = |tag: &str| operation.tags.iter().flatten().any(|own| own == tag);
    match () {
        () if tagged("admin") => For::Operators,
        () if tagged("operating") => For::All,
        () if BOTH.contains(&(method, path)) => For::Both,
        () => For::Callers,
    }
}

impl Known {
    /// Returns whether an address matches the operation's path: `{id}` matches any segment.
    fn is_at(&self, path: &str) -> bool {
        let (mut own, mut asked) = (self.path.split('/'), path.split('/'));
        loop {
            match (own.next(), asked.next()) {
                (None, None) => return true,
                (Some(own), Some(asked)) if own == asked => {}
                (Some(own), Some(asked)) if own.starts_with('{') && !asked.is_empty() => {}
                _ => return false,
            }
        }
    }
}

impl Listener {
    fn has(self, whose: For) -> bool {
        match (self, whose) {
            (_, For::All) => true,
            (Self::Common { operators }, For::Operators) => operators,
            (Self::Common { .. }, _) => true,
            (Self::Operators, For::Operators | For::Both) => true,
            (Self::Operators, For::Callers) | (Self::Metrics, _) => false,
        }
    }

    /// Returns the description of the listener's operations.
    pub fn description(self) -> utoipa::openapi::OpenApi {
        let mut doc = api_doc();
        for (path, item) in &mut doc.paths.paths {
            let slots = [
                ("GET", &mut item.get),
                ("PUT", &mut item.put),
                ("POST", &mut item.post),
                ("DELETE", &mut item.delete),
            ];
            for (method, slot) in slots {
                let gone = slot
                    .as_ref()
                    .is_some_and(|operation| !self.has(whose(method, path, operation)));
                if gone {
                    *slot = None;
                }
            }
        }
        doc.paths
            .paths
            .retain(|_, item| operations(item).next().is_some());
        doc
    }

    /// Returns the routes of the documentation: the page at `/docs`, the description, and the index at `/`.
    pub fn docs(self) -> Router<AppState> {
        docs_page::routes(self.description()).route(
            "/",
            get(move |state, headers| signpost(self, state, headers)),
        )
    }

    /// Returns the error for an unknown route.
    pub fn nowhere(self, method: &Method, path: &str) -> ApiError {
        let message = self.why_not(method, path);
        ApiError::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// Returns the error for a method that a route does not have.
    pub fn no_method(self, method: &Method, path: &str) -> ApiError {
        let message = match self.elsewhere(method, path) {
            Some(why) => why,
            None => {
                let there: BTreeSet<&str> = self.at(path).map(|known| known.method).collect();
                match there.into_iter().collect::<Vec<_>>().as_slice() {
                    [] => format!("the route `{path}` does not accept {method}"),
                    methods => format!(
                        "the route `{path}` accepts {}, not {method}",
                        methods.join(" or ")
                    ),
                }
            }
        };
        ApiError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            message,
        )
    }

    fn at<'p>(self, path: &'p str) -> impl Iterator<Item = &'static Known> + use<'p> {
        KNOWN
            .iter()
            .filter(move |known| self.has(known.whose) && known.is_at(path))
    }

    fn why_not(self, method: &Method, path: &str) -> String {
        if let Some(why) = self.elsewhere(method, path) {
            return why;
        }
        let paths: BTreeSet<&str> = KNOWN
            .iter()
            .filter(|known| self.has(known.whose))
            .map(|known| known.path.as_str())
            .collect();
        let paths: Vec<&str> = paths.into_iter().collect();
        let versioned = format!("/v1{path}");
        let plain = path.strip_prefix("/v1").unwrap_or(path);
        let near = paths
            .iter()
            .find(|known| **known == versioned || **known == plain.trim_end_matches('/'))
            .copied()
            .or_else(|| settings::did_you_mean(path, &paths));
        match near {
            Some(near) => format!(
                "there is no route `{}`; did you mean `{near}`?",
                shown(path)
            ),
            // The listener for metrics has no index.
            None if self != Self::Metrics => {
                format!("there is no route `{}`; `/` lists all routes", shown(path))
            }
            None => {
                let all: Vec<String> = paths.iter().map(|path| format!("`{path}`")).collect();
                format!(
                    "there is no route `{}`; use one of {}",
                    shown(path),
                    all.join(", ")
                )
            }
        }
    }

    /// Returns where the operation exists, if it is on another listener.
    fn elsewhere(self, method: &Method, path: &str) -> Option<String> {
        let elsewhere = KNOWN.iter().filter(|known| !self.has(known.whose));
        let found = elsewhere
            .filter(|known| known.is_at(path))
            .max_by_key(|known| known.method == method.as_str())?;
        let route = format!("`{} {}`", found.method, found.path);
        Some(match (self, found.whose) {
            (Self::Common { .. }, _) => format!(
                "{route} is an operators' route: it is on the operators' listener (--admin-listen), and here where operators have keys \
                 (--admin-key-file)"
            ),
            (Self::Operators, _) => {
                format!("{route} is a callers' route: it is on the common listener (--listen)")
            }
            (Self::Metrics, For::Operators) => {
                format!("{route} is on the operators' listener (--admin-listen)")
            }
            (Self::Metrics, _) => format!("{route} is on the common listener (--listen)"),
        })
    }

    /// Returns the listener's operations: each one's method and path.
    pub fn operations(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let own = KNOWN.iter().filter(move |known| self.has(known.whose));
        own.map(|known| (known.method, known.path.as_str()))
    }

    /// Returns the listener's title.
    pub fn title(self) -> &'static str {
        match self {
            Self::Common { .. } => "selfjudge",
            Self::Operators => "selfjudge, for operators",
            Self::Metrics => "selfjudge, metrics",
        }
    }
}

/// Returns a caller's path, shortened for an error.
fn shown(path: &str) -> &str {
    const MOST: usize = 80;
    &path[..path.floor_char_boundary(MOST)]
}

/// Adds fallbacks that answer for the paths and methods that the listener lacks.
pub fn fallbacks(routes: Router<AppState>, listener: Listener) -> Router<AppState> {
    let listener = Arc::new(listener);
    let other = Arc::clone(&listener);
    routes
        .fallback(move |method: Method, uri: axum::http::Uri| async move {
            listener.nowhere(&method, uri.path())
        })
        .method_not_allowed_fallback(move |method: Method, uri: axum::http::Uri| async move {
            other.no_method(&method, uri.path())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_that_is_not_here_says_where_it_is() {
        let common = Listener::Common { operators: false };
        for (listener, method, path, named) in [
            (common, Method::GET, "/train", "--admin-listen"),
            (common, Method::POST, "/train/pause", "--admin-key-file"),
            (
                common,
                Method::POST,
                "/generations/x/promote",
                "--admin-listen",
            ),
            (common, Method::GET, "/events", "--admin-listen"),
            (
                common,
                Method::POST,
                "/chat/completions",
                "`/v1/chat/completions`",
            ),
            (common, Method::POST, "/v1/generate", "`/generate`"),
            (common, Method::POST, "/genrate", "`/generate`"),
            (common, Method::GET, "/xyzzy", "`/` lists"),
            (Listener::Operators, Method::POST, "/generate", "--listen"),
            (Listener::Operators, Method::GET, "/trian", "`/train`"),
            (Listener::Metrics, Method::POST, "/judge", "--listen"),
            (Listener::Metrics, Method::GET, "/train", "--admin-listen"),
        ] {
            let message = listener.why_not(&method, path);
            assert!(message.contains(named), "{listener:?} {path}: {message}");
        }
        let keyed = Listener::Common { operators: true };
        assert!(keyed.elsewhere(&Method::GET, "/train").is_none());
        let put = common
            .no_method(&Method::PUT, "/principles")
            .into_body()
            .error;
        assert!(put.message.contains("--admin-listen"), "{}", put.message);
        let get = common
            .no_method(&Method::GET, "/generate")
            .into_body()
            .error;
        assert!(get.message.contains("POST"), "{}", get.message);
        assert!(common.why_not(&Method::GET, &"/x".repeat(5000)).len() < 200);
    }

    #[test]
    fn a_description_has_what_the_listener_has() {
        let paths = |listener: Listener| -> BTreeSet<String> {
            listener.description().paths.paths.into_keys().collect()
        };
        let (common, keyed) = (
            paths(Listener::Common { operators: false }),
            paths(Listener::Common { operators: true }),
        );
        let operators = paths(Listener::Operators);
        assert!(common.contains("/generate") && !common.contains("/train"));
        assert!(keyed.contains("/generate") && keyed.contains("/train"));
        assert!(!operators.contains("/generate") && operators.contains("/train"));
        assert!(operators.contains("/records") && operators.contains("/metrics"));
        let all: BTreeSet<String> = api_doc().paths.paths.into_keys().collect();
        assert_eq!(keyed, all);
    }
}

//! The API's description as a page.

use axum::Router;
use axum::extract::Request;
use axum::http::header;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use utoipa::openapi::OpenApi;
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::AppState;

/// The path of the page, if the program has one.
pub const PATH: Option<&str> = Some("/docs");

/// Returns the routes of the page and of the description that it shows.
pub fn routes(description: OpenApi) -> Router<AppState> {
    // By default the page would send its address to a public validator.
    let config = Config::new(["/openapi.json"]).validator_url("none");
    let page = SwaggerUi::new("/docs").config(config);
    Router::new()
        .merge(page.url("/openapi.json", description))
        .layer(middleware::from_fn(titled))
}

/// Puts the program's name on the documentation's page.
async fn titled(request: Request, next: Next) -> Response {
    /// Maximum bytes of the page, which has a few hundred.
    const MOST: usize = 1 << 16;
    let response = next.run(request).await;
    let is_page = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
    if !is_page {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let Ok(page) = axum::body::to_bytes(body, MOST).await else {
        return super::layers::internal().into_response();
    };
    let page = String::from_utf8_lossy(&page).replace(
        "<title>Swagger UI</title>",
        "<title>selfjudge: the API</title>",
    );
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, page.into())
}

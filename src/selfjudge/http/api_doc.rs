//! The API description: derived from the handlers, committed as `openapi/openapi.json`, shown at `/docs`.

use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::api_examples::{Answers, Tags};
use super::openai::{chat, completions, decisions, models, responses};
use super::{
    events, feedback, generate, generations, judge, principles, records, status, tokens, train,
};

#[derive(OpenApi)]
#[openapi(
    info(description = "One language model that answers, judges its own answers and keeps improving on them."),
    paths(
        generate::generate,
        judge::judge,
        tokens::tokenize,
        tokens::detokenize,
        chat::chat,
        completions::completions,
        responses::responses,
        decisions::decisions,
        models::models,
        models::model,
        records::get,
        records::delete,
        records::delete_all,
        feedback::feedback,
        principles::principles,
        principles::replace,
        events::events,
        generations::generations,
        generations::promote,
        generations::rollback,
        train::train,
        train::pause,
        train::resume,
        train::abandon,
        status::health,
        status::ready,
        status::metrics
    ),
    tags(
        (name = "selfjudge", description = "Generation and judging in this server's own format"),
        (name = "OpenAI", description = "Generation and decisions in the format of OpenAI's API"),
        (name = "records", description = "Recorded calls of a caller, and feedback on them"),
        (name = "operating", description = "Health, readiness and metrics"),
        (name = "admin", description = "Operations for operators: on their own listener, or with an operator's key")
    ),
    modifiers(&Keys, &Answers, &Tags)
)]
struct Documented;

/// Adds the API keys, which calls need if the server has keys.
struct Keys;

impl Modify for Keys {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("Required if the server was started with keys"));
        let scheme = SecurityScheme::Http(bearer.build());
        let components = api.components.get_or_insert_default();
        components
            .security_schemes
            .insert("key".into(), scheme.into());
        let with_key = SecurityRequirement::new::<_, _, String>("key", []);
        api.security = Some(vec![SecurityRequirement::default(), with_key]);
    }
}

/// Returns the description, as OpenAPI 3.1.
pub fn api_doc() -> utoipa::openapi::OpenApi {
    Documented::openapi()
}

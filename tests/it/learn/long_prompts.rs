//! Learning with a shorter context than the one that the prompts were logged with.

use serde_json::{Value, json};

use super::support::{LEARN, Program, Setup};

/// Maximum tokens of the learning server.
const CONTEXT: usize = 256;

/// Returns a call whose prompt has at least `tokens` tokens, and few more.
fn call(program: &Program, tokens: usize, number: usize) -> Value {
    let mut content = format!("What is {} plus {}?", 10 + number, 20 + number);
    let messages = |content: &str| json!([{"role": "user", "content": content}]);
    loop {
        let counted = program.post("/tokenize", &json!({"messages": messages(&content)}));
        if counted["count"].as_u64().unwrap() as usize >= tokens {
            return json!({"messages": messages(&content), "max_tokens": 24, "seed": number});
        }
        content.insert_str(0, "Well. ");
    }
}

#[test]
fn prompts_that_are_longer_than_the_context_are_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::start(&Setup::new(dir.path()));
    for number in 0..60 {
        // Too long to be drawn; nearly as long as the context, so that a principle before it is too much; short.
        let tokens = [CONTEXT + 40, CONTEXT - 4, 1][number % 3];
        let call = call(&program, tokens, number);
        program.post("/generate", &call);
    }
    program.stop();

    let principles =
        r#"[{ good = "Answer correctly and briefly.", bad = "Answer wrongly and at length." }]"#;
    let contrast = format!(
        "[contrast]\nshare = 0.9\nconfirmed = false\nmax_distance = 100.0\nprinciples = {principles}\n"
    );
    let learn = format!(
        "{contrast}\n{}",
        LEARN.replace("prompts = 8", "prompts = 16")
    );
    let context = CONTEXT.to_string();
    let setup = Setup {
        arguments: &["--max-model-len", &context],
        ..Setup::learning(dir.path(), &learn)
    };
    let program = Program::start(&setup);
    program.ended(1);
    let too_long = program.counted("selfjudge:train_pairs_dropped_total", "too_long");
    assert!(too_long > 0.0, "{}", program.metrics());
    program.stop();
}

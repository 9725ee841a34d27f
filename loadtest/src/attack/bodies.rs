//! The requests of the attacks. Bodies are written as text, since a `Value` of millions of parts would cost the attacker more
//! than the server.

use super::attacks::Size;

/// Returns a complete POST request.
fn post(path: &str, key: &str, body: &str) -> Vec<u8> {
    let mut request = head("POST", path, key, body.len());
    request.extend_from_slice(body.as_bytes());
    request
}

/// Returns the head of a request, with the empty line at its end.
pub fn head(method: &str, path: &str, key: &str, length: usize) -> Vec<u8> {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: attacked\r\nx-api-key: {key}\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n"
    )
    .into_bytes()
}

/// Repeats `item` `count` times, as the elements of a JSON array.
fn parts(item: &str, count: usize) -> String {
    let mut text = format!("{item},").repeat(count);
    text.pop();
    text
}

/// Returns `count` pseudo-random letters, the same for the same seed.
fn letters(count: usize, seed: u32) -> String {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut letter = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        char::from(b'a' + (state % 26) as u8)
    };
    (0..count).map(|_| letter()).collect()
}

fn words(count: usize) -> String {
    "seven ".repeat(count / 6 + 1)
}

pub fn stop_strings(size: Size, key: &str) -> Vec<Vec<u8>> {
    [(1023, 1_000_000), (64, 200_000), (1, 4_000_000)]
        .into_iter()
        .map(|(prompts, length)| {
            let (prompts, stop) = (
                parts("\"hi\"", prompts),
                letters(size.of(length), prompts as u32),
            );
            let body = format!(r#"{{"prompt":[{prompts}],"max_tokens":1,"stop":"{stop}"}}"#);
            post("/v1/completions", key, &body)
        })
        .collect()
}

pub fn many_stop_strings(size: Size, key: &str) -> Vec<Vec<u8>> {
    [(100_000, 8), (1000, 4000), (4, 1_000_000)]
        .into_iter()
        .map(|(count, length)| {
            let stops = (0..size.of(count)).map(|at| format!("\"{}\"", letters(length, at as u32)));
            let stops = stops.collect::<Vec<_>>().join(",");
            let body = format!(r#"{{"prompt":"hi","n":16,"max_tokens":4,"stop":[{stops}]}}"#);
            post("/generate", key, &body)
        })
        .collect()
}

/// Returns prompts that begin with a known text and guess the digit after it.
pub fn known_prefixes(_: Size, key: &str) -> Vec<Vec<u8>> {
    let known = "Patient Ann Lee, born 1984, has diagnosis code 753";
    (0..10)
        .map(|digit| {
            let body = format!(r#"{{"prompt":"{known}{digit}Z","max_tokens":1}}"#);
            post("/generate", key, &body)
        })
        .collect()
}

pub fn private_keys(size: Size, key: &str) -> Vec<Vec<u8>> {
    let line = "-----BEGIN PRIVATE KEY-----sk-aaaaaaaaaaaaaaaaaaaa ";
    [
        line,
        "-----BEGIN PRIVATE KEY-----",
        "sk-aaaaaaaaaaaaaaaaaaaa",
        "4111 1111 1111 1112 ",
        "a.b.c.d@",
        "+49 170 ",
    ]
    .into_iter()
    .map(|part| {
        let text = part.repeat(size.of(500_000) / part.len() + 1);
        let body =
            format!(r#"{{"prompt":"q","candidates":["{text}","b"],"log":{{"retain":true}}}}"#);
        post("/judge", key, &body)
    })
    .collect()
}

pub fn prompts_and_samples(size: Size, key: &str) -> Vec<Vec<u8>> {
    let prompts = parts("\"a\"", size.of(1024));
    let body = format!(r#"{{"prompt":[{prompts}],"n":128,"max_tokens":500,"ignore_eos":true}}"#);
    vec![post("/v1/completions", key, &body)]
}

pub fn samples(size: Size, key: &str) -> Vec<Vec<u8>> {
    let (n, tokens) = (size.of(128), size.of(500));
    [
        format!(r#"{{"prompt":"a","n":{n},"max_tokens":{tokens},"ignore_eos":true}}"#),
        format!(r#"{{"prompt":"a","best_of":{n},"max_tokens":{tokens},"ignore_eos":true}}"#),
        format!(
            r#"{{"prompt":"a","n":{n},"max_tokens":{tokens},"ignore_eos":true,"stream":true}}"#
        ),
        format!(
            r#"{{"prompt":"a","n":{n},"max_tokens":{tokens},"ignore_eos":true,"priority":-100}}"#
        ),
    ]
    .iter()
    .map(|body| post("/generate", key, body))
    .collect()
}

pub fn small_calls(size: Size, key: &str) -> Vec<Vec<u8>> {
    let tokens = size.of(200);
    (0..32)
        .map(|seed| {
            let body = format!(
                r#"{{"prompt":"What is {seed} plus 28?","max_tokens":{tokens},"ignore_eos":true,"seed":{seed}}}"#
            );
            post("/generate", key, &body)
        })
        .collect()
}

pub fn tournaments(size: Size, key: &str) -> Vec<Vec<u8>> {
    ["knockout", "ring", "round_robin"]
        .into_iter()
        .map(|bracket| {
            let count = match bracket {
                "round_robin" => 100,
                _ => 4000,
            };
            let candidates = (0..size.of(count)).map(|at| format!("\"{at} is it.\""));
            let candidates = candidates.collect::<Vec<_>>().join(",");
            let body = format!(
                r#"{{"prompt":"What is 34 plus 28?","candidates":[{candidates},"62"],"bracket":"{bracket}"}}"#
            );
            post("/judge", key, &body)
        })
        .collect()
}

pub fn stop_ids(size: Size, key: &str) -> Vec<Vec<u8>> {
    [64, 128]
        .into_iter()
        .map(|n| {
            let ids = parts("5", size.of(3_990_001));
            let body = format!(
                r#"{{"prompt":"a","n":{n},"max_tokens":400,"ignore_eos":true,"stream":true,"min_tokens":300,"stop_token_ids":[{ids}]}}"#
            );
            post("/generate", key, &body)
        })
        .collect()
}

pub fn long_prompts(size: Size, key: &str) -> Vec<Vec<u8>> {
    let long = "1".repeat(size.of(8_000_000));
    let prose = words(size.of(8_000_000));
    vec![
        post("/generate", key, &format!(r#"{{"prompt":"{long}"}}"#)),
        post(
            "/v1/completions",
            key,
            &format!(r#"{{"prompt":"{prose}"}}"#),
        ),
        post("/tokenize", key, &format!(r#"{{"text":"{long}"}}"#)),
        post(
            "/v1/chat/completions",
            key,
            &format!(r#"{{"messages":[{{"role":"user","content":"{prose}"}}]}}"#),
        ),
        post(
            "/v1/decisions",
            key,
            &format!(
                r#"{{"input":"{long}","questions":[{{"type":"predicate","instructions":"x"}}]}}"#
            ),
        ),
        post(
            "/judge",
            key,
            &format!(r#"{{"prompt":"{prose}","candidates":["62","52"]}}"#),
        ),
    ]
}

pub fn long_candidates(size: Size, key: &str) -> Vec<Vec<u8>> {
    let principles = parts("\"brief\"", 64);
    [20_000, 400_000]
        .into_iter()
        .map(|length| {
            let long = words(size.of(length));
            let body = format!(
                r#"{{"prompt":"q","candidates":["{long}a","{long}b"],"principles":[{principles}]}}"#
            );
            post("/judge", key, &body)
        })
        .collect()
}

pub fn huge_candidates(size: Size, key: &str) -> Vec<Vec<u8>> {
    let principles = parts("\"brief\"", 64);
    let long = "1".repeat(size.of(4_000_000));
    let body =
        format!(r#"{{"prompt":"q","candidates":["{long}","2"],"principles":[{principles}]}}"#);
    vec![post("/judge", key, &body)]
}

pub fn many_candidates(size: Size, key: &str) -> Vec<Vec<u8>> {
    ["knockout", "ring"]
        .into_iter()
        .map(|bracket| {
            let candidates = (0..size.of(20_000)).map(|at| format!("\"{at}\""));
            let candidates = candidates.collect::<Vec<_>>().join(",");
            let body = format!(
                r#"{{"prompt":"q","candidates":[{candidates},"x"],"bracket":"{bracket}"}}"#
            );
            post("/judge", key, &body)
        })
        .collect()
}

pub fn nothing(_: Size, _: &str) -> Vec<Vec<u8>> {
    vec![Vec::new()]
}

pub fn half_a_head(_: Size, _: &str) -> Vec<Vec<u8>> {
    vec![
        b"G".to_vec(),
        b"POST /generate HTTP/1.1\r\nhost: x\r\n".to_vec(),
    ]
}

pub fn half_a_body(_: Size, key: &str) -> Vec<Vec<u8>> {
    ["/generate", "/judge", "/tokenize", "/v1/chat/completions"]
        .into_iter()
        .map(|path| {
            let mut request = head("POST", path, key, 100);
            request.push(b'{');
            request
        })
        .collect()
}

pub fn streams(size: Size, key: &str) -> Vec<Vec<u8>> {
    let n = size.of(32);
    let body = format!(
        r#"{{"prompt":"a","n":{n},"max_tokens":480,"ignore_eos":true,"stream":true,"logprobs":20}}"#
    );
    vec![post("/generate", key, &body)]
}

pub fn large_answers(size: Size, key: &str) -> Vec<Vec<u8>> {
    let ids = (0..128)
        .map(|id| id.to_string())
        .collect::<Vec<_>>()
        .join(",");
    let n = size.of(32);
    let body = format!(
        r#"{{"prompt":"a","n":{n},"max_tokens":480,"ignore_eos":true,"logprobs":20,"logprob_token_ids":[{ids}]}}"#
    );
    vec![post("/generate", key, &body)]
}

/// Returns calls whose records are large, the largest first. Servers differ in the size of the records that they accept.
pub fn large_records(size: Size, key: &str) -> Vec<Vec<u8>> {
    let stops = [200_000, 20_000, 250].map(|length| {
        let stop = "x".repeat(size.of(length));
        let body = format!(
            r#"{{"prompt":"a","n":64,"max_tokens":1,"stop":"{stop}","log":{{"retain":true}}}}"#
        );
        post("/generate", key, &body)
    });
    let long = words(size.of(500));
    let candidates = parts(&format!("\"{long}\""), 200);
    let body =
        format!(r#"{{"prompt":"q","candidates":[{candidates},"b"],"log":{{"retain":true}}}}"#);
    let judged = post("/judge", key, &body);
    stops.into_iter().chain([judged]).collect()
}

pub fn large_sampling(size: Size, key: &str) -> Vec<Vec<u8>> {
    let prompts = parts("\"a\"", 128);
    let stop = "x".repeat(size.of(50_000));
    let ids = parts("5", size.of(50_000));
    [
        format!(
            r#"{{"prompt":[{prompts}],"n":8,"max_tokens":1,"stop":"{stop}","log":{{"retain":true}}}}"#
        ),
        format!(
            r#"{{"prompt":[{prompts}],"n":8,"max_tokens":1,"stop_token_ids":[{ids}],"log":{{"retain":true}}}}"#
        ),
        // An allowed request: small calls of many records.
        format!(r#"{{"prompt":[{prompts}],"n":8,"max_tokens":1,"log":{{"retain":true}}}}"#),
    ]
    .iter()
    .map(|body| post("/v1/completions", key, body))
    .collect()
}

pub fn wide_json(size: Size, key: &str) -> Vec<Vec<u8>> {
    let zeros = parts("0", size.of(4_000_000));
    let objects = parts("{}", size.of(2_600_000));
    let keys = (0..size.of(500_000)).map(|at| format!("\"k{at}\":0"));
    let keys = keys.collect::<Vec<_>>().join(",");
    vec![
        post("/generate", key, &format!(r#"{{"x":[{zeros}]}}"#)),
        post(
            "/v1/completions",
            key,
            &format!(r#"{{"prompt":[{zeros}]}}"#),
        ),
        post("/judge", key, &format!(r#"{{"x":[{objects}]}}"#)),
        post("/generate", key, &format!("{{{keys}}}")),
    ]
}

pub fn deep_json(size: Size, key: &str) -> Vec<Vec<u8>> {
    let depth = size.of(4_000_000);
    let brackets = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    vec![
        post("/generate", key, &brackets),
        post("/generate", key, &format!(r#"{{"prompt":{brackets}}}"#)),
        post("/judge", key, &"{\"a\":".repeat(depth / 3)),
    ]
}

/// Returns bodies of many parts, of which each part is allowed.
pub fn many_parts(size: Size, key: &str) -> Vec<Vec<u8>> {
    let messages = parts(r#"{"role":"user","content":"x"}"#, size.of(250_000));
    let texts = parts(r#"{"type":"text","text":"x"}"#, size.of(250_000));
    let biases = (0..size.of(500_000)).map(|at| format!("\"{}\":1", at % 380));
    let biases = biases.collect::<Vec<_>>().join(",");
    let principles = parts("\"brief\"", size.of(500_000));
    let ids = parts("5", size.of(3_000_000));
    vec![
        post(
            "/v1/chat/completions",
            key,
            &format!(r#"{{"messages":[{messages}]}}"#),
        ),
        post(
            "/v1/chat/completions",
            key,
            &format!(r#"{{"messages":[{{"role":"user","content":[{texts}]}}]}}"#),
        ),
        post(
            "/generate",
            key,
            &format!(r#"{{"prompt":"x","logit_bias":{{{biases}}}}}"#),
        ),
        post(
            "/judge",
            key,
            &format!(r#"{{"prompt":"x","candidates":["a","b"],"principles":[{principles}]}}"#),
        ),
        post("/v1/completions", key, &format!(r#"{{"prompt":[{ids}]}}"#)),
        post("/detokenize", key, &format!(r#"{{"tokens":[{ids}]}}"#)),
    ]
}

pub fn choices(size: Size, key: &str) -> Vec<Vec<u8>> {
    let equal = parts("\"a\"", size.of(60_000));
    let different = (0..size.of(5000)).map(|at| format!("\"{}\"", letters(200, at as u32)));
    let different = different.collect::<Vec<_>>().join(",");
    [equal, different]
        .into_iter()
        .map(|choices| {
            let body = format!(
                r#"{{"prompt":"a","max_tokens":4,"structured_outputs":{{"choice":[{choices}]}}}}"#
            );
            post("/generate", key, &body)
        })
        .collect()
}

pub fn grammars_and_samples(size: Size, key: &str) -> Vec<Vec<u8>> {
    [(32, 16, 150_000), (1024, 128, 15_000), (1, 128, 150_000)]
        .into_iter()
        .map(|(prompts, n, length)| {
            let (prompts, regex) = (parts("\"a\"", prompts), letters(size.of(length), 7));
            let body = format!(
                r#"{{"prompt":[{prompts}],"n":{n},"max_tokens":4,"structured_outputs":{{"regex":"{regex}"}}}}"#
            );
            post("/v1/completions", key, &body)
        })
        .collect()
}

/// Returns grammars that no compiler can finish. The server must refuse them with 400, never with 500.
pub fn hopeless_grammars(size: Size, key: &str) -> Vec<Vec<u8>> {
    let choices = (0..size.of(10_000)).map(|at| format!("\"choice {at}\""));
    let choices = choices.collect::<Vec<_>>().join(",");
    let optional = (0..size.of(2000)).map(|at| format!(r#""p{at}":{{"type":"string"}}"#));
    let optional = optional.collect::<Vec<_>>().join(",");
    [
        format!(r#"{{"choice":[{choices}]}}"#),
        format!(r#"{{"json":{{"type":"object","properties":{{{optional}}}}}}}"#),
        r#"{"grammar":"start: <|user|> \"hi\" <|end|>"}"#.to_owned(),
        r#"{"grammar":"start: x\nx: x x | \"a\" | x x x"}"#.to_owned(),
        r#"{"regex":"((a{1000}){1000}){1000}"}"#.to_owned(),
        r#"{"regex":"(a|b)*a(a|b){40}c"}"#.to_owned(),
    ]
    .iter()
    .map(|shape| {
        let body = format!(r#"{{"prompt":"a","max_tokens":8,"structured_outputs":{shape}}}"#);
        post("/generate", key, &body)
    })
    .collect()
}

pub fn wrong_keys(_: Size, _: &str) -> Vec<Vec<u8>> {
    (0..16)
        .map(|at| post("/generate", &letters(40, at), r#"{"prompt":"a"}"#))
        .collect()
}

pub fn long_request_ids(size: Size, key: &str) -> Vec<Vec<u8>> {
    let id = "i".repeat(size.of(300_000));
    let body = r#"{"prompt":"a","max_tokens":1}"#;
    let head = format!(
        "POST /generate HTTP/1.1\r\nhost: attacked\r\nx-api-key: {key}\r\nx-request-id: {id}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    vec![head.into_bytes()]
}

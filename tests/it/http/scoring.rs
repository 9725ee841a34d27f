//! Tests of log-probabilities as OpenAI's and vLLM's clients read them: of prompts, of answers, by the names of tokens.

use super::*;

const TEXT: &str = "/v1/completions";
const PROMPT: &str = "What is 34 plus 28? It is";

fn ids(text: &str) -> Vec<u32> {
    let tokens = ok("/tokenize", &json!({"text": text}))["tokens"].clone();
    serde_json::from_value(tokens).unwrap()
}

fn numbers(list: &Value) -> Vec<f64> {
    let numbers = list.as_array().unwrap().iter();
    numbers.map(|number| number.as_f64().unwrap()).collect()
}

/// Sends the call with which lm-eval scores texts.
fn scored(prompt: &Value) -> Value {
    ok(
        TEXT,
        &json!({"model": "pocket", "prompt": prompt, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": true}),
    )
}

#[test]
fn a_prompt_is_scored_as_it_is_when_each_of_its_tokens_is_drawn() {
    let ids = ids(PROMPT);
    // In the second call the cache has the beginning of the prompt. Every token is still scored.
    let answers = [scored(&json!([ids])), scored(&json!([ids]))];
    let [first, second] = answers.each_ref().map(|answer| &answer["choices"][0]);
    assert_eq!(first, second);
    let list = &first["logprobs"];
    assert_eq!(list["tokens"].as_array().unwrap().len(), ids.len() + 1);
    assert_eq!(
        (&list["token_logprobs"][0], &list["top_logprobs"][0]),
        (&Value::Null, &Value::Null)
    );
    for at in 1..ids.len() {
        // Drawing the same token after the tokens before it gives the same number.
        let drawn = ok(
            TEXT,
            &json!({"prompt": ids[..at], "max_tokens": 1, "temperature": 0, "logprobs": 1, "logit_bias": {ids[at].to_string(): 100}}),
        );
        let drawn = &drawn["choices"][0]["logprobs"];
        assert_eq!(list["tokens"][at], drawn["tokens"][0], "{at}");
        assert_eq!(
            list["token_logprobs"][at], drawn["token_logprobs"][0],
            "{at}"
        );
        assert_eq!(list["top_logprobs"][at], drawn["top_logprobs"][0], "{at}");
    }
    let text = first["text"].as_str().unwrap();
    assert!(text.starts_with(PROMPT), "{text}");
    let tokens: Vec<String> = serde_json::from_value(list["tokens"].clone()).unwrap();
    let offsets = numbers(&list["text_offset"]);
    for (at, token) in tokens.iter().enumerate() {
        let before: usize = tokens[..at].iter().map(|token| token.chars().count()).sum();
        assert_eq!(offsets[at] as usize, before, "{token}");
    }
}

#[test]
fn several_prompts_are_scored_at_once_each_for_itself() {
    let prompts = [ids(PROMPT), ids("2 plus 3"), ids("What is 34"), vec![50]];
    let together = scored(&json!(prompts));
    for (at, prompt) in prompts.iter().enumerate() {
        let alone = scored(&json!([prompt]));
        let (mut together, alone) = (together["choices"][at].clone(), &alone["choices"][0]);
        assert_eq!(together["index"].take(), at);
        assert_eq!(together["logprobs"], alone["logprobs"]);
        assert_eq!(together["text"], alone["text"]);
    }
    let twice = ok(
        TEXT,
        &json!({"prompt": ["2 plus", "3 plus"], "n": 2, "echo": true, "max_tokens": 2, "seed": 3, "logprobs": 0}),
    );
    for (at, choice) in twice["choices"].as_array().unwrap().iter().enumerate() {
        let text = choice["text"].as_str().unwrap();
        assert!(text.starts_with(["2 plus", "3 plus"][at / 2]), "{text}");
        assert!(choice["logprobs"]["top_logprobs"].is_null());
    }
}

#[test]
fn no_answer_is_wanted_with_max_tokens_zero() {
    let body = json!({"prompt": PROMPT, "max_tokens": 0, "echo": true, "logprobs": 2});
    let answer = ok(TEXT, &body);
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["text"], &choice["finish_reason"]),
        (&json!(PROMPT), &json!("length"))
    );
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    assert_eq!(
        choice["logprobs"]["tokens"].as_array().unwrap().len(),
        ids(PROMPT).len()
    );
    let whole = scored(&json!([ids(PROMPT)]));
    let known = ids(PROMPT).len();
    let whole = &whole["choices"][0]["logprobs"]["token_logprobs"]
        .as_array()
        .unwrap()[..known];
    assert_eq!(
        choice["logprobs"]["token_logprobs"].as_array().unwrap(),
        whole
    );
    let mut streamed = body;
    streamed["stream"] = json!(true);
    let events = events(TEXT, &streamed);
    assert_eq!(events[0]["choices"][0]["text"], PROMPT);
    assert_eq!(events[0]["choices"][0]["logprobs"], choice["logprobs"]);
    assert_eq!(
        ok(TEXT, &json!({"prompt": PROMPT, "max_tokens": 0}))["choices"][0]["text"],
        ""
    );
}

#[test]
fn prompt_logprobs_are_vllms() {
    let ids = ids(PROMPT);
    let answer = ok(
        TEXT,
        &json!({"prompt": ids, "max_tokens": 1, "prompt_logprobs": 2, "temperature": 0}),
    );
    let choice = &answer["choices"][0];
    assert!(choice["logprobs"].is_null());
    let told = choice["prompt_logprobs"].as_array().unwrap();
    assert_eq!((told.len(), &told[0]), (ids.len(), &Value::Null));
    let echoed = scored(&json!([ids]));
    let echoed = &echoed["choices"][0]["logprobs"];
    for (at, (told, id)) in told.iter().zip(&ids).enumerate().skip(1) {
        let own = &told[id.to_string()];
        assert_eq!(own["logprob"], echoed["token_logprobs"][at]);
        assert_eq!(own["decoded_token"], echoed["tokens"][at]);
        let rank = own["rank"].as_u64().unwrap() as usize;
        let told = told.as_object().unwrap();
        assert_eq!(told.len(), 2 + usize::from(rank > 2), "{told:?}");
        let better = told
            .values()
            .filter(|other| other["logprob"].as_f64() > own["logprob"].as_f64());
        assert_eq!(better.count(), (rank - 1).min(2));
    }
    for (body, param) in [
        (
            json!({"prompt": "x", "prompt_logprobs": 21}),
            "prompt_logprobs",
        ),
        (
            json!({"prompt": "x", "prompt_logprobs": -1}),
            "prompt_logprobs",
        ),
        (json!({"prompt": "x", "echo": 1}), "echo"),
        (
            json!({"prompt": vec!["seven ".repeat(200); 600], "prompt_logprobs": 20, "max_tokens": 1}),
            "prompt_logprobs",
        ),
        (
            json!({"prompt": vec!["seven ".repeat(200); 600], "echo": true, "logprobs": 20, "max_tokens": 1}),
            "logprobs",
        ),
    ] {
        let (status, error) = post(TEXT, &body);
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(error["error"]["param"], param, "{error}");
    }
}

#[test]
fn the_drawn_token_is_among_the_probable_ones_under_its_name() {
    let body = json!({"prompt": PROMPT, "temperature": 2, "seed": 7, "max_tokens": 30, "ignore_eos": true, "logprobs": 2, "n": 3});
    let whole = ok(TEXT, &body);
    let mut unlikely = 0;
    for choice in whole["choices"].as_array().unwrap() {
        let list = &choice["logprobs"];
        for (at, token) in list["tokens"].as_array().unwrap().iter().enumerate() {
            let top = list["top_logprobs"][at].as_object().unwrap();
            assert_eq!(top[token.as_str().unwrap()], list["token_logprobs"][at]);
            assert!((2..=3).contains(&top.len()), "{top:?}");
            unlikely += usize::from(top.len() == 3);
        }
    }
    assert!(unlikely > 10, "{unlikely}");
    // The events of a stream have the same lists in pieces.
    let mut streamed = body;
    streamed["stream"] = json!(true);
    let events = events(TEXT, &streamed);
    for choice in whole["choices"].as_array().unwrap() {
        let of_choice: Vec<&Value> = events
            .iter()
            .flat_map(|event| event["choices"].as_array().unwrap())
            .filter(|piece| piece["index"] == choice["index"])
            .collect();
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let pieces = of_choice
                .iter()
                .map(|piece| piece["logprobs"][name].as_array().unwrap().clone());
            let joined: Vec<Value> = pieces.flatten().collect();
            assert_eq!(
                *choice["logprobs"][name].as_array().unwrap(),
                joined,
                "{name}"
            );
        }
    }
}

#[test]
fn bytes_are_true_and_half_characters_have_names() {
    // The bytes of two characters are drawn one by one.
    let tokens = ids("é🙂");
    assert_eq!(tokens.len(), 6, "the characters must not be single tokens");
    let regex = json!({"structured_outputs": {"regex": "é🙂"}, "logprobs": true, "top_logprobs": 1, "max_tokens": 8,
        "messages": [{"role": "user", "content": "x"}]});
    let answer = ok("/v1/chat/completions", &regex);
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["content"], "é🙂");
    let content = choice["logprobs"]["content"].as_array().unwrap();
    let bytes: Vec<u8> = content
        .iter()
        .filter(|token| !token["bytes"].is_null())
        .flat_map(|token| serde_json::from_value::<Vec<u8>>(token["bytes"].clone()).unwrap())
        .collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), "é🙂");
    assert_eq!(content[0]["token"], "bytes:\\xc3");
    let text = json!({"structured_outputs": {"regex": "aé🙂b"}, "prompt": "x", "logprobs": 1, "max_tokens": 9});
    let answer = ok(TEXT, &text);
    let list = &answer["choices"][0]["logprobs"];
    let offsets = numbers(&list["text_offset"]);
    assert_eq!(offsets[..8], [0.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 3.0]);
    let mut streamed = text;
    streamed["stream"] = json!(true);
    let pieces = events(TEXT, &streamed);
    let pieces = pieces
        .iter()
        .flat_map(|event| event["choices"].as_array().unwrap());
    let joined: Vec<Value> = pieces
        .flat_map(|piece| piece["logprobs"]["text_offset"].as_array().unwrap().clone())
        .collect();
    assert_eq!(*list["text_offset"].as_array().unwrap(), joined);
}

/// Starts the pocket model with a tokenizer that strips the space at the start of a text, as Llama 2's does.
fn stripping() -> Router {
    let pocket = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket");
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&pocket).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
    }
    let path = dir.path().join("tokenizer.json");
    let mut tokenizer: Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let decoder = tokenizer["decoder"].take();
    tokenizer["decoder"] = json!({"type": "Sequence", "decoders": [decoder, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let model = LanguageModel::load(dir.path(), &LoadOptions::default()).unwrap();
    let metrics = Metrics::new("pocket");
    let weights = WeightStore::new(model.decoder().clone());
    let (engine, _) = Engine::start(weights, &engine(), metrics.engine.clone()).unwrap();
    let service = Service::new(engine, &model, dir.path(), metrics.judge.clone()).unwrap();
    let config = HttpConfig::default();
    let state = Shared::new(service, "pocket", metrics, &config).into_state();
    router(state, &config)
}

#[test]
fn a_completion_keeps_its_first_space_and_a_chat_does_not_begin_with_one() {
    let server = stripping();
    let ask = |path: &str, body: &Value| {
        let (status, answer) = RUNTIME.block_on(post_to(&server, path, body));
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer
    };
    let space = ids(" plus")[0];
    let word = ok("/detokenize", &json!({"tokens": [space]}))["text"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(word.starts_with(' '), "{word:?}");
    let bias = json!({space.to_string(): 100});
    // The decoder of the shared server strips nothing. Both servers must answer alike.
    let body = json!({"prompt": "2", "max_tokens": 3, "logit_bias": bias, "temperature": 0, "logprobs": 1});
    let (stripped, plain) = (ask(TEXT, &body), ok(TEXT, &body));
    assert_eq!(stripped["choices"], plain["choices"]);
    assert!(
        plain["choices"][0]["text"]
            .as_str()
            .unwrap()
            .starts_with(&word)
    );
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let pieces =
        RUNTIME.block_on(async { text(call(&server, TEXT, streamed.to_string()).await).await });
    let pieces = events_of(&pieces);
    assert_eq!(pieces[0]["choices"][0]["text"], word);
    // This stop string is the beginning of the answer.
    let mut stopped = body.clone();
    stopped["stop"] = json!([word]);
    let choice = &ask(TEXT, &stopped)["choices"][0];
    assert_eq!(
        (&choice["text"], &choice["stop_reason"]),
        (&json!(""), &json!(word))
    );
    // Candidates have the space too, and grammars begin after the prompt.
    let mut best = body.clone();
    best["best_of"] = json!(2);
    // Greedy candidates would all be equal. The bias leaves one choice for each token.
    best["temperature"] = json!(1.0);
    assert_eq!(
        ask(TEXT, &best)["choices"][0]["text"],
        plain["choices"][0]["text"]
    );
    let shaped = json!({"prompt": "2", "max_tokens": 30, "seed": 1, "structured_outputs": {"choice": [" plus 3", " minus 3"]}});
    let shaped = ask(TEXT, &shaped);
    let chosen = shaped["choices"][0]["text"].as_str().unwrap();
    assert!([" plus 3", " minus 3"].contains(&chosen), "{chosen:?}");
    let echoed =
        json!({"prompt": "2", "max_tokens": 1, "logit_bias": bias, "temperature": 0, "echo": true});
    assert_eq!(ask(TEXT, &echoed)["choices"][0]["text"], format!("2{word}"));
    let chat = json!({"messages": [{"role": "user", "content": "2"}], "max_tokens": 1, "logit_bias": bias, "temperature": 0,
        "logprobs": true});
    let choice = &ask("/v1/chat/completions", &chat)["choices"][0];
    assert_eq!(choice["message"]["content"], word.trim_start());
    assert_eq!(choice["logprobs"]["content"][0]["token"], word.trim_start());
}

#[test]
fn stop_strings_end_nothing_before_the_least_number_of_tokens() {
    let all = ok(
        TEXT,
        &json!({"prompt": "2 plus", "max_tokens": 12, "seed": 4, "ignore_eos": true}),
    );
    let all = all["choices"][0]["text"].as_str().unwrap();
    let letter = all
        .chars()
        .find(|letter| !letter.is_whitespace())
        .unwrap()
        .to_string();
    let body = |min_tokens: usize| json!({"prompt": "2 plus", "max_tokens": 12, "seed": 4, "ignore_eos": true, "stop": [letter], "min_tokens": min_tokens});
    let early = ok(TEXT, &body(0));
    assert!(early["usage"]["completion_tokens"].as_u64().unwrap() < 12);
    let late = ok(TEXT, &body(12));
    assert_eq!(late["usage"]["completion_tokens"], 12);
}

#[test]
fn the_prompt_of_a_chat_is_scored_as_its_text_is() {
    let messages =
        json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]);
    let ids = ok("/tokenize", &json!({"messages": messages}))["tokens"].clone();
    let text = ok(
        TEXT,
        &json!({"prompt": ids, "max_tokens": 1, "prompt_logprobs": 2, "temperature": 0}),
    );
    let expected = &text["choices"][0]["prompt_logprobs"];
    let mut body =
        json!({"messages": messages, "max_tokens": 3, "prompt_logprobs": 2, "seed": 1, "n": 2});
    let chat = ok("/v1/chat/completions", &body);
    assert_eq!(chat["prompt_logprobs"], *expected);
    assert_eq!(
        expected.as_array().unwrap().len(),
        ids.as_array().unwrap().len()
    );
    assert!(chat["choices"][0].get("prompt_logprobs").is_none());
    assert!(chat["choices"][0]["logprobs"].is_null());
    body["stream"] = json!(true);
    let streamed = events("/v1/chat/completions", &body);
    let told: Vec<&Value> = streamed
        .iter()
        .filter_map(|event| event.get("prompt_logprobs"))
        .collect();
    assert_eq!(told, [expected]);
    body.as_object_mut().unwrap().remove("prompt_logprobs");
    assert!(
        ok(
            "/v1/chat/completions",
            &json!({"messages": messages, "max_tokens": 1})
        )
        .get("prompt_logprobs")
        .is_none()
    );
    for (value, named) in [
        (json!(21), true),
        (json!(-1), true),
        (json!("2"), true),
        (Value::Null, false),
    ] {
        let body = json!({"messages": messages, "max_tokens": 1, "prompt_logprobs": value});
        let (status, answer) = post("/v1/chat/completions", &body);
        assert_eq!(status == StatusCode::BAD_REQUEST, named, "{answer}");
        assert!(
            !named || answer["error"]["param"] == "prompt_logprobs",
            "{answer}"
        );
    }
}

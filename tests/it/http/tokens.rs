//! Tests of `/tokenize` and `/detokenize`.

use super::*;

#[test]
fn text_survives_tokenising() {
    for sample in ["What is 34 plus 28?", "péché \u{1F980} <|im_end|>", ""] {
        let tokens = ok("/tokenize", &json!({"text": sample}))["tokens"].clone();
        assert_eq!(
            ok("/detokenize", &json!({"tokens": tokens}))["text"],
            sample
        );
    }
}

//! Models that are refused, by the name of their kind and with advice: architectures, and quantised weights.

use super::Architecture;
use crate::config::Fields;
use crate::error::ModelError;

/// A kind of model that the decoder does not compute.
struct Kind {
    /// What it is, and what to use instead.
    what: &'static str,
    /// Parts of the class names and model types of the kind, in lower case without `_` and `-`.
    parts: &'static [&'static str],
}

/// The kinds, the more special ones first.
const KINDS: [Kind; 6] = [
    Kind {
        what: "a classifier or reward model: use the model of a class ...ForCausalLM, which can judge as it is",
        parts: &[
            "forsequenceclassification",
            "fortokenclassification",
            "forquestionanswering",
            "rewardmodel",
            "processreward",
        ],
    },
    Kind {
        what: "a mixture of experts: use Qwen3-MoE or a dense model",
        parts: &[
            "moe",
            "mixtral",
            "gptoss",
            "dbrx",
            "deepseekv",
            "arctic",
            "llama4",
            "minimax",
            "grok",
            "jetmoe",
        ],
    },
    Kind {
        what: "a recurrent or state-space model: use a transformer",
        parts: &[
            "mamba",
            "rwkv",
            "recurrentgemma",
            "jamba",
            "bamba",
            "zamba",
            "xlstm",
            "falconh1",
            "nemotronh",
            "lfm2",
            "qwen3next",
        ],
    },
    Kind {
        what: "an encoder with a decoder: use a model of a decoder alone",
        parts: &[
            "t5",
            "bart",
            "pegasus",
            "marian",
            "whisper",
            "m2m100",
            "seq2seq",
            "encoderdecoder",
            "speecht",
            "blenderbot",
            "prophetnet",
        ],
    },
    Kind {
        what: "a model of text with images or sound: use a checkpoint of its text model alone, of a class ...ForCausalLM",
        parts: &[
            "forconditionalgeneration",
            "imagetexttotext",
            "llava",
            "vision",
            "vl",
            "idefics",
            "paligemma",
            "multimodal",
            "phi3v",
            "phi4mm",
            "audio",
            "omni",
            "pixtral",
            "internvl",
            "gemma3",
            "mllama",
            "molmo",
            "florence",
        ],
    },
    Kind {
        what: "an encoder, which generates no text: use a model of a class ...ForCausalLM",
        parts: &[
            "bert",
            "electra",
            "xlnet",
            "mpnet",
            "longformer",
            "bigbird",
            "embedding",
            "clip",
        ],
    },
];

/// Returns the error about an architecture or model type that is not supported.
pub(super) fn architecture(found: &str) -> ModelError {
    ModelError::UnsupportedArchitecture {
        found: described(found),
        supported: Architecture::names(),
    }
}

/// Returns the name of an architecture that is not supported, with its kind and advice if the kind is known.
pub(crate) fn described(found: &str) -> String {
    let plain = found.to_lowercase().replace(['_', '-'], "");
    let kind = KINDS
        .iter()
        .find(|kind| kind.parts.iter().any(|part| plain.contains(part)));
    // The name is from a file, and the message is one line.
    let name: String = found.chars().filter(|c| !c.is_control()).take(60).collect();
    match kind {
        Some(Kind { what, .. }) => format!("`{name}`, {what}"),
        None => format!("`{name}`"),
    }
}

/// Methods of quantisation, by `quant_method` in lower case, and the names that people know them by.
const METHODS: [(&str, &str); 20] = [
    ("aqlm", "AQLM"),
    ("auto-round", "AutoRound"),
    ("awq", "AWQ"),
    ("bitnet", "BitNet"),
    ("bitsandbytes", "bitsandbytes"),
    ("compressed-tensors", "compressed-tensors"),
    ("eetq", "EETQ"),
    ("exl2", "EXL2"),
    ("exl3", "EXL3"),
    ("fbgemm_fp8", "FP8 of FBGEMM"),
    ("finegrained_fp8", "FP8"),
    ("fp8", "FP8"),
    ("gptq", "GPTQ"),
    ("higgs", "HIGGS"),
    ("hqq", "HQQ"),
    ("modelopt", "ModelOpt"),
    ("mxfp4", "MXFP4"),
    ("quanto", "Quanto"),
    ("torchao", "torchao"),
    ("vptq", "VPTQ"),
];

/// Files that old exporters wrote beside a `config.json` without a word about quantisation.
const FILES: [(&str, &str); 2] = [
    ("quantize_config.json", "GPTQ"),
    ("quant_config.json", "AWQ"),
];

/// Errors if the configuration, or a file beside it, says that the weights are quantised.
pub(super) fn refuse_quantised(fields: &Fields) -> Result<(), ModelError> {
    if let Some(config) = fields.object("quantization_config")? {
        return Err(refused(fields, &method(&config)?));
    }
    let beside = |(name, _): &&(&str, &str)| fields.path().with_file_name(name).exists();
    match FILES.iter().find(beside) {
        Some((_, method)) => Err(refused(fields, method)),
        None => Ok(()),
    }
}

fn refused(fields: &Fields, method: &str) -> ModelError {
    fields.error(format!(
        "the checkpoint is quantised ({method}), which is not supported: use the model from which it was made, or a GGUF file"
    ))
}

/// Returns the name of the method that a `quantization_config` describes.
fn method(config: &Fields) -> Result<String, ModelError> {
    let bits = |key: &str| -> Result<bool, ModelError> { Ok(config.bool(key)?.unwrap_or(false)) };
    let found = config.string("quant_method")?;
    let (four, eight) = (bits("load_in_4bit")?, bits("load_in_8bit")?);
    let Some(found) = found else {
        return Ok(match (four, eight) {
            (false, false) => "of a method that `quantization_config` does not name".to_owned(),
            (true, _) => "bitsandbytes, 4 bit".to_owned(),
            (false, true) => "bitsandbytes, 8 bit".to_owned(),
        });
    };
    let lower = found.to_lowercase();
    let known = METHODS.iter().find(|(name, _)| *name == lower);
    Ok(match (known, four, eight) {
        (Some((_, name)), true, _) => format!("{name}, 4 bit"),
        (Some((_, name)), _, true) => format!("{name}, 8 bit"),
        (Some((_, name)), ..) => match config.optional_count("bits", 64)? {
            Some(bits) => format!("{name}, {bits} bit"),
            None => (*name).to_owned(),
        },
        (None, ..) => {
            let name: String = found.chars().filter(|c| !c.is_control()).take(60).collect();
            format!("`{name}`")
        }
    })
}

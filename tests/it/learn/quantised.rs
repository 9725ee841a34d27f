//! A test of learning from a model whose weights are integers: adapters are trained over the weights that are served.

use super::support::{LEARN, Program, Setup};

#[test]
fn a_model_in_four_bits_learns_and_serves_what_it_trained() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup {
        learn: Some(LEARN),
        arguments: &["--weights", "int4"],
        ..Setup::new(dir.path())
    };
    let program = Program::try_start(&setup).map_err(|ended| ended.said);
    let program = program.unwrap();
    for number in 0..40 {
        program.ask(number);
    }
    let id = program.learned();
    assert_eq!(program.policy(), id);
    let generations = program.admin_get("/generations");
    let gates = &generations["generations"][0]["gates"];
    let value = |name: &str| {
        let gates = gates.as_array()?;
        gates.iter().find(|gate| gate["gate"] == name)?["value"].as_f64()
    };
    // Policy and reference are computed over the same numbers, and the engine only rounds activations.
    assert!(value("step_zero").is_some_and(|gap| gap < 1e-3), "{gates}");
    assert!(value("parity").is_some_and(|gap| gap < 0.05), "{gates}");
    program.stop();
}

#[test]
fn weights_that_a_trainer_does_not_have_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup {
        learn: Some(LEARN),
        arguments: &["--weights", "bf16"],
        ..Setup::new(dir.path())
    };
    let said = Program::try_start(&setup).err().expect("refused").said;
    assert!(said.contains("bf16") && said.contains("int4"), "{said}");
}

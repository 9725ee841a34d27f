use super::*;

fn good() -> Measurements {
    Measurements {
        norm: 0.01,
        moved: true,
        step_zero: Some(0.0),
        parity: Some(0.001),
        duels: vec![
            Duel {
                score: 0.9,
                longer: 0.0
            };
            100
        ],
        kl: Some(3.0),
        anchor: Some([0.8, 0.79]),
        judge: Some([0.9, 0.91]),
        base: BaseMeasurements {
            win_rate: Some(0.6),
            truncated: 0.0,
            anchor: Some(0.8),
            judge: Some(0.9),
        },
        ..Measurements::default()
    }
}

fn failed(measured: &Measurements) -> Vec<String> {
    let results = judge(&GateConfig::default(), measured);
    assert_eq!(results.len(), 14);
    let failed = results.into_iter().filter(|result| !result.passed);
    failed.map(|result| result.gate).collect()
}

#[test]
fn a_good_candidate_passes_and_each_gate_can_stop_one() {
    assert!(failed(&good()).is_empty());
    type Spoil = fn(&mut Measurements);
    let spoilt: [(&str, Spoil); 18] = [
        ("finite", |m| m.not_finite = 1),
        ("norm", |m| m.norm = 0.9),
        ("norm", |m| m.moved = false),
        ("step_zero", |m| m.step_zero = Some(0.1)),
        ("step_zero", |m| m.step_zero = None),
        ("parity", |m| m.parity = Some(f64::NAN)),
        ("parity", |m| m.parity = None),
        ("kl", |m| m.kl = Some(99.0)),
        ("kl", |m| m.kl = None),
        ("truncated", |m| {
            m.truncated = [0.2, 0.1];
            m.base.truncated = 0.2;
        }),
        ("anchor", |m| {
            m.anchor = Some([0.7, 0.8]);
            m.base.anchor = Some(0.7);
        }),
        ("judge", |m| {
            m.judge = Some([0.8, 0.9]);
            m.base.judge = Some(0.8);
        }),
        ("base_win_rate", |m| m.base.win_rate = Some(0.45)),
        ("base_win_rate", |m| m.base.win_rate = None),
        ("base_truncated", |m| {
            m.truncated = [0.12, 0.1];
            m.base.truncated = 0.01;
        }),
        ("base_anchor", |m| m.base.anchor = Some(0.85)),
        ("base_judge", |m| m.base.judge = Some(0.95)),
        ("win_rate", |m| {
            for duel in &mut m.duels {
                duel.score = 0.5;
            }
            m.duels[0].score = 0.4;
        }),
    ];
    for (gate, spoil) in spoilt {
        let mut measured = good();
        spoil(&mut measured);
        assert_eq!(failed(&measured), [gate]);
    }
}

/// Tests a sequence of stages that each lose as much as the gates against the live policy allow.
#[test]
fn many_small_losses_do_not_add_up() {
    let config = GateConfig::default();
    let (start, mut live, mut promoted) = (0.9, 0.9, 0);
    for _ in 0..20 {
        let candidate = live - 0.9 * config.tolerance;
        let measured = Measurements {
            anchor: Some([candidate, live]),
            judge: Some([candidate, live]),
            base: BaseMeasurements {
                anchor: Some(start),
                judge: Some(start),
                ..good().base
            },
            ..good()
        };
        if failed(&measured).is_empty() {
            live = candidate;
            promoted += 1;
        }
    }
    assert!(promoted > 0, "one such loss is within every bound");
    assert!(start - live <= config.base.tolerance, "{live}");
}

/// Compares the table in the documentation of [`GateConfig::pass_undecided`] and in docs/learning.md.
#[test]
fn the_documented_pass_rates_are_those_of_the_test() {
    let rates = [0.44, 0.46, 0.48, 0.50, 0.52, 0.55, 0.58, 0.60];
    let rows = [
        (
            128,
            true,
            [0.099, 0.203, 0.352, 0.529, 0.700, 0.885, 0.970, 0.990],
        ),
        (
            128,
            false,
            [0.001, 0.003, 0.011, 0.031, 0.075, 0.214, 0.446, 0.621],
        ),
        (
            256,
            false,
            [0.002, 0.007, 0.029, 0.092, 0.228, 0.560, 0.858, 0.955],
        ),
        (
            400,
            false,
            [0.002, 0.009, 0.040, 0.138, 0.348, 0.758, 0.964, 0.994],
        ),
        (
            800,
            false,
            [0.002, 0.009, 0.047, 0.186, 0.487, 0.892, 0.987, 0.997],
        ),
    ];
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let doc = std::fs::read_to_string(root.join("../../docs/learning.md")).unwrap();
    for (prompts, pass_undecided, documented) in rows {
        let config = GateConfig {
            prompts,
            pass_undecided,
            ..GateConfig::default()
        };
        for (rate, documented) in rates.into_iter().zip(documented) {
            let passes = config.pass_rate(rate);
            assert!(
                (passes - documented).abs() < 6e-4,
                "{prompts} {rate}: {passes}"
            );
        }
        let cells = documented.map(|rate| format!("{rate:.3}"));
        let cells = cells.map(|cell| cell.trim_start_matches('0').to_owned());
        let row = format!("| {prompts} | {pass_undecided} | {} |", cells.join(" | "));
        assert!(doc.contains(&row), "{row}");
    }
    let default = GateConfig::default();
    assert!(default.pass_rate(0.58) >= 0.9 && default.pass_rate(0.48) <= 0.05);
}

/// Tests duels of which half are ties and six in ten of the others are won. If ties counted, the test would be undecided.
#[test]
fn ties_are_no_duels() {
    let score = |at: usize| match at % 20 {
        tie if tie % 2 == 0 => 0.5,
        1 | 3 | 5 | 7 => 0.0,
        _ => 1.0,
    };
    let duel = |at| Duel {
        score: score(at),
        longer: 0.0,
    };
    let measured = Measurements {
        duels: (0..400).map(duel).collect(),
        ..good()
    };
    let config = GateConfig::default();
    let results = judge(&config, &measured);
    let win_rate = results.iter().find(|r| r.gate == "win_rate").unwrap();
    let note = win_rate.note.as_ref().unwrap();
    assert!(
        note.contains("of 200 duels, 0.600 of them won, beside 200 ties"),
        "{note}"
    );
    assert!((win_rate.value.unwrap() - 0.55).abs() < 1e-9);
    assert!(win_rate.passed, "{note}");
    let nothing = Measurements {
        duels: vec![duel(0); 400],
        ..good()
    };
    assert_eq!(
        failed(&nothing),
        ["win_rate"],
        "an equal candidate is not better"
    );
}

#[test]
fn wins_by_length_are_stopped_by_the_length_controlled_gate() {
    let mut measured = good();
    for (at, duel) in measured.duels.iter_mut().enumerate() {
        let won = at % 5 != 0;
        duel.score = if won { 0.95 } else { 0.05 };
        duel.longer = if won { 20.0 } else { -8.0 };
    }
    assert_eq!(failed(&measured), ["length_controlled"]);
}

#[test]
fn what_was_not_measured_has_no_number_and_says_why() {
    let measured = Measurements {
        step_zero: None,
        ..good()
    };
    let results = judge(&GateConfig::default(), &measured);
    let step_zero = results.iter().find(|r| r.gate == "step_zero").unwrap();
    assert_eq!((step_zero.value, step_zero.passed), (None, false));
    assert!(step_zero.note.as_ref().unwrap().starts_with("not measured"));
}

#[test]
fn without_an_anchor_set_its_gates_say_so() {
    let results = judge(
        &GateConfig::default(),
        &Measurements {
            anchor: None,
            ..good()
        },
    );
    let anchor = results
        .iter()
        .find(|result| result.gate == "anchor")
        .unwrap();
    assert!(anchor.passed && anchor.value.is_none() && anchor.note.is_some());
}

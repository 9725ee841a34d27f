//! The duration of steps while sequences decode and prompts arrive.

use std::time::Duration;

use super::request::Class;
use super::scheduler_tests::{World, config, tenant};

/// A simulated step: its tokens, and its duration.
#[derive(Debug, Clone, Copy)]
struct Step {
    tokens: usize,
    took: Duration,
}

/// Runs `steps` steps on a processor on which a step takes 300 µs and 100 µs for each token, with four sequences that decode
/// throughout and two prompts of 3,000 tokens that arrive after the tenth step.
fn run(target: Option<Duration>, steps: usize) -> Vec<Step> {
    let mut config = config(512, 8);
    config.target_itl = target;
    let mut world = World::new(2_000, config, true);
    let add = |world: &mut World, first: u32, len: u32, tokens| {
        let prompt: Vec<u32> = (first..first + len).collect();
        world.add_for(tenant(1), Class::Foreground, &prompt, tokens, 1, 0)
    };
    for sequence in 0..4 {
        add(&mut world, 10_000 * (1 + sequence), 20, 1_000);
    }
    (0..steps)
        .map(|step| {
            if step == 10 {
                add(&mut world, 100_000, 3_000, 5);
                add(&mut world, 200_000, 3_000, 5);
            }
            let (output, _) = world.step(|_| 7);
            let tokens = output.num_tokens();
            let took = Duration::from_micros(300 + 100 * tokens as u64);
            world.scheduler.observe(output.work, took);
            Step { tokens, took }
        })
        .collect()
}

#[test]
fn a_prompt_lengthens_the_steps_of_a_stream_to_the_target() {
    let target = Duration::from_millis(5);
    let steps = run(Some(target), 200);
    // The first steps with a prompt are the first measurements of long ones.
    let beside = &steps[20..120];
    for (at, step) in (20..).zip(beside) {
        assert!(step.took <= target + target / 10, "step {at}: {step:?}");
    }
    let mean = beside.iter().map(|step| step.tokens).sum::<usize>() / beside.len();
    assert!(mean > 40, "of the 47 tokens that fit, {mean} were computed");
    let longest = |steps: &[Step]| steps.iter().map(|step| step.took).max();
    assert_eq!(
        longest(&run(None, 200)),
        Some(Duration::from_micros(51_500))
    );
}

#[test]
fn prompts_get_half_of_the_time_where_decoding_alone_exceeds_the_target() {
    let decoding = Duration::from_micros(700);
    let steps = run(Some(Duration::from_micros(1)), 300);
    for (at, step) in (20..).zip(&steps[20..250]) {
        // At least the rows of a tile, as few as they are.
        assert!(step.tokens >= 4 + 16, "step {at}: {step:?}");
        assert!(step.took <= 4 * decoding, "step {at}: {step:?}");
    }
}

#[test]
fn a_prompt_alone_takes_whole_steps() {
    let mut config = config(512, 8);
    config.target_itl = Some(Duration::from_millis(1));
    let mut world = World::new(2_000, config, true);
    let prompt: Vec<u32> = (1..=3_000).collect();
    world.add_for(tenant(1), Class::Foreground, &prompt, 1, 1, 0);
    let mut tokens = Vec::new();
    for _ in 0..6 {
        let (output, _) = world.step(|_| 7);
        let took = Duration::from_millis(output.num_tokens() as u64);
        world.scheduler.observe(output.work, took);
        tokens.push(output.num_tokens());
    }
    assert_eq!(tokens, [512, 512, 512, 512, 512, 440]);
}

//! Tests that training works: a model small enough to learn within a minute gains both skills.

use judge::{Format, Judge, JudgeTemplate, principles_from_model_dir, read_records};
use model::{LanguageModel, LoadOptions, WeightStore};
use pocket::world::corpus::{self, CurriculumOptions};
use selfjudge::{
    eval::ModelSubject,
    eval::judge::{JudgeEvalOptions, evaluate_sets},
    eval::subject::Subject,
};
use text::{Message, Role};
use train::{
    config::DataFile,
    jsft::{Summary, run},
    mixture::Order,
};

use crate::jsft::{options, start, tiny};
use crate::support::inline;

/// Trains a model far smaller than the default one with parts of the same recipe.
#[test]
fn both_skills_rise_within_a_minute_of_training() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("corpus");
    let world = CurriculumOptions::probe();
    corpus::write(&data, 9, 12_000, &world).unwrap();
    let mut config = tiny(root.path(), "probe", 0);
    config.model = start(root.path(), 64, 3).display().to_string();
    config.data = vec![DataFile::new(data.join("pairs.jsonl"))];
    config.order = Order::Windowed(1024);
    config.batch_size = 48;
    config.micro_batch_tokens = 1200;
    config.save_every = 0;
    config.schedule.learning_rate = 4e-3;
    config.optim.optimizer = train::optim::OptimizerKind::Muon;
    config.mixture.judge_weight = 3.0;
    config.mixture.candidate_weight = 0.25;

    let skills = |summary: &Summary| -> (f64, f64) {
        let dir = summary.model_dir.as_ref().expect("the run is complete");
        let model = LanguageModel::load(dir, &LoadOptions::default()).unwrap();
        let engine = inline(&WeightStore::new(model.decoder().clone()));
        let judge = Judge::new(
            model.tokenizer().clone(),
            model.chat_template().clone(),
            JudgeTemplate::from_model_dir(dir).unwrap(),
            principles_from_model_dir(dir).unwrap(),
            engine.handle().capacity().max_context,
        )
        .unwrap();
        let mut subject = ModelSubject::new(engine, &model, judge, 48);
        let set = read_records(&data.join("heldout-correct.jsonl"), Format::default()).unwrap();
        let sets = vec![("correct".to_owned(), set)];
        let options = JudgeEvalOptions::default();
        let table = evaluate_sets(&mut subject, sets, &options, |_| {}).unwrap();
        let tasks = corpus::held_out_tasks(3, 150, &world.kinds, &world.last_levels);
        let asked: Vec<Vec<Message>> = tasks
            .iter()
            .map(|task| vec![Message::new(Role::User, task.prompt.clone())])
            .collect();
        let answers = subject.answer(&asked, 0.0, 1).unwrap();
        let right = tasks
            .iter()
            .zip(&answers)
            .filter(|(task, answer)| task.check(answer).correct)
            .count();
        let judged = table.0[0].accuracy.share.unwrap();
        (right as f64 / tasks.len() as f64, judged)
    };
    config.max_steps = Some(1);
    let before = skills(&run(&config, &options(false, None)).unwrap());
    config.max_steps = None;
    config.output_dir = root.path().join("trained");
    let after = skills(&run(&config, &options(false, None)).unwrap());
    eprintln!(
        "answers {:.2} -> {:.2}, judgements {:.2} -> {:.2}",
        before.0, after.0, before.1, after.1
    );
    assert!(
        after.0 > before.0 + 0.3,
        "answering: {} -> {}",
        before.0,
        after.0
    );
    assert!(after.1 > 0.6, "judging: {} -> {}", before.1, after.1);
}

//! placeholder until the mixture lands
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExampleKind {
    Sft,
    Judge,
}
#[derive(Debug, Clone, PartialEq)]
pub struct TrainExample {
    pub ids: Vec<u32>,
    pub weights: Vec<f32>,
    pub kind: ExampleKind,
}

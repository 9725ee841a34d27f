//! Generating calls and their records: the answers to all prompts of a call, whole or streamed.

use std::sync::Arc;

use futures::future::try_join_all;
use serde_json::{Value, json};

use super::draft::{ABORTED, Given, RecordDraft};
use super::policy::RecordPolicy;
use super::{CallOrigin, CallRecords, ConsentRequest, Recorded, RecordedService};
use crate::call::RecordError;
use crate::call::{CallError, Turn, Usage};
use crate::judging::{JudgeTask, Tournament, TournamentTask};
use crate::service::{Generation, Output, Service, TextTask, TokenText};
use engine::{PromptLogprobs, SamplingParams};
use model::WeightsName;
use traffic_log::{Prompt, RecordKind, Sample};

/// A generating call: its prompts, and the settings that they share.
pub struct GenerateCall {
    pub prompts: Vec<PromptTask>,
    /// The number of answers per prompt, the best ones if the candidates are judged.
    pub n: usize,
    /// The strings that end an answer, for the record.
    pub stop: Arc<[String]>,
    /// Whether the caller wants log-probabilities with the tokens.
    pub shows_logprobs: bool,
    pub turn: Turn,
    pub recordable: Recordable,
}

/// One prompt of a call, and how its candidates are judged if only the best are wanted.
pub struct PromptTask {
    pub text: TextTask,
    /// The prompt as the caller sent it.
    pub asked: Prompt,
    pub judging: Option<(JudgeTask, TournamentTask)>,
}

/// Whether the answers of a call can be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recordable {
    Yes,
    /// The samples are no answers to the prompt that can be trained on.
    NoAnswers,
    /// The conversation has tools.
    Tools,
}

/// A generating call in progress.
pub struct RecordedCall {
    service: Service,
    policy: RecordPolicy,
    prompts: Vec<RecordedGeneration>,
    n: usize,
    warning: Option<&'static str>,
}

/// The generation of one prompt's samples, with the draft of their record.
pub struct RecordedGeneration {
    generation: Generation,
    judging: Option<(JudgeTask, TournamentTask)>,
    draft: RecordDraft,
    shows_logprobs: bool,
}

/// The end of a streamed call, at which its records are committed.
pub struct StreamEnd {
    policy: RecordPolicy,
}

/// The answers to one prompt.
pub struct Answer {
    /// All samples, or the best ones if candidates were judged, best first.
    pub outputs: Vec<Output>,
    pub prompt_logprobs: Option<Arc<[PromptLogprobs]>>,
    pub tournament: Option<Tournament>,
    pub usage: Usage,
    pub weights: Option<WeightsName>,
}

impl RecordedService {
    /// Starts a call: the generation of its first prompt if the queue has room for it, the others in turn. One version answers all
    /// prompts of a call.
    ///
    /// # Errors
    /// Errors if the call requests a record that is not possible, if any prompt cannot be served, or if the queue is full.
    pub async fn generate(
        &self,
        origin: CallOrigin,
        consent: Option<ConsentRequest>,
        call: GenerateCall,
    ) -> Result<RecordedCall, CallError> {
        let policy = self.policy(origin, consent).await?;
        let with_tools = call.recordable == Recordable::Tools && policy.records();
        let policy = match call.recordable {
            Recordable::Yes => policy,
            Recordable::NoAnswers | Recordable::Tools => policy.without_record(),
        };
        let turn = policy.turn(call.turn);
        let weights = self.service().answering_weights(&turn);
        let (mut tasks, mut rest) = (Vec::new(), Vec::new());
        for (index, prompt) in call.prompts.into_iter().enumerate() {
            let mut task = TextTask {
                weights: Some(weights.clone()),
                turn,
                ..prompt.text
            };
            policy.prepare(&mut task, index);
            let draft = policy.draft(RecordKind::Generate, index, || {
                given(&task, prompt.asked, weights.name(), &call.stop)
            });
            tasks.push(task);
            rest.push((prompt.judging, draft));
        }
        let generations = self.service().generate_all(tasks)?;
        let prompts = generations.into_iter().zip(rest);
        let prompt = |(generation, (judging, draft))| RecordedGeneration {
            generation,
            judging,
            draft,
            shows_logprobs: call.shows_logprobs,
        };
        Ok(RecordedCall {
            service: self.service().clone(),
            policy,
            prompts: prompts.map(prompt).collect(),
            n: call.n,
            warning: with_tools.then_some(WITH_TOOLS),
        })
    }
}

/// The warning that a call is not recorded because of its tools.
const WITH_TOOLS: &str =
    "tools: The call is not recorded or trained on, because its conversation has tools.";

/// Returns the content of a prompt's record that is known before it is answered.
fn given(task: &TextTask, asked: Prompt, weights: &WeightsName, stop: &[String]) -> Given {
    Given {
        prompt: asked,
        prompt_token_ids: task.prompt.clone(),
        version: weights.to_string(),
        sample: Sample {
            seed: task.params.seed,
            sampling: sampling(&task.params, stop, task.grammar.is_some()),
            finish_reason: Some(ABORTED.to_owned()),
            version: Some(weights.to_string()),
            ..Sample::given("")
        },
    }
}

/// Returns the sampling settings in the traffic log's form; the seed is logged separately.
fn sampling(params: &SamplingParams, stop: &[String], grammar: bool) -> Value {
    json!({
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "logit_bias": params.logit_bias,
        "max_tokens": params.stop.max_tokens,
        "min_tokens": params.stop.min_tokens,
        "stop": stop,
        "stop_token_ids": params.stop.stop_ids.sorted(),
        "grammar": grammar,
    })
}

impl RecordedCall {
    /// Returns the warning that the call is not recorded, although the consent permits it.
    pub fn warning(&self) -> Option<&'static str> {
        self.warning
    }

    /// Generates all answers and commits their records. `admit` is called for every token, and its error ends the call.
    ///
    /// # Errors
    /// Errors of the generation and of the judge, of `admit`, and of the log if the policy is to refuse.
    pub async fn answers<E: From<CallError>>(
        self,
        admit: impl Fn(&TokenText) -> Result<(), E>,
    ) -> Result<Recorded<Vec<Answer>>, E> {
        let (service, n) = (&self.service, self.n);
        let prompts = self.prompts.into_iter();
        let answers = prompts.map(|prompt| prompt.answer(service, n, &admit));
        let answers = try_join_all(answers).await?;
        let (answers, drafts) = answers.into_iter().unzip();
        let records = self.policy.commit(drafts).await.map_err(CallError::from);
        Ok(Recorded {
            result: answers,
            records: records?,
        })
    }

    /// Returns the generations to stream, and the end at which their records are committed.
    pub fn into_stream(self) -> (Vec<RecordedGeneration>, StreamEnd) {
        let end = StreamEnd {
            policy: self.policy,
        };
        (self.prompts, end)
    }
}

impl RecordedGeneration {
    /// Returns the next increment of a sample; `None` after the last one.
    ///
    /// # Errors
    /// Errors as [`Generation::next`] does.
    pub async fn next(&mut self) -> Result<Option<Output>, CallError> {
        let mut output = self.generation.next().await?;
        if let Some(output) = &mut output {
            self.draft.increment(output);
            self.hide_logprobs(output);
        }
        Ok(output)
    }

    /// Returns the token counts so far.
    pub fn usage(&self) -> Usage {
        self.generation.usage()
    }

    /// Returns the weights that answer; known once the generation has started.
    pub fn weights(&self) -> Option<WeightsName> {
        self.generation.weights()
    }

    /// Returns the log-probabilities of the prompt's tokens except the first, if requested; complete once a sample has begun.
    pub fn prompt_logprobs(&self) -> Option<Arc<[PromptLogprobs]>> {
        self.generation.prompt_logprobs()
    }

    /// Generates all answers, or the best `n` of them.
    async fn answer<E: From<CallError>>(
        mut self,
        service: &Service,
        n: usize,
        admit: &impl Fn(&TokenText) -> Result<(), E>,
    ) -> Result<(Answer, RecordDraft), E> {
        let mut refused = None;
        let go_on = |token: &TokenText| match admit(token) {
            Ok(()) => true,
            Err(error) => {
                refused = Some(error);
                false
            }
        };
        let drawn = match &self.judging {
            Some((judge, how)) => {
                let best = service.best_of(&mut self.generation, judge, *how, go_on);
                let best = best.await?;
                best.map(|(candidates, judged)| (candidates, Some(judged)))
            }
            None => {
                let outputs = self.generation.outputs_while(go_on).await?;
                outputs.map(|outputs| (outputs, None))
            }
        };
        let Some((mut outputs, judged)) = drawn else {
            let refused = refused.expect("a token was refused with an error; this is a bug");
            return Err(refused);
        };
        self.draft.outputs(&outputs);
        let mut usage = self.generation.usage();
        let tournament = judged.map(|judged| {
            usage.add(judged.usage);
            if let Some((judge, _)) = &self.judging {
                let weights = judged.weights.as_ref();
                self.draft.tournament(judge, weights, &judged.result);
            }
            outputs = judged.result.take_best(&mut outputs, n);
            judged.result
        });
        outputs
            .iter_mut()
            .for_each(|output| self.hide_logprobs(output));
        let answer = Answer {
            outputs,
            prompt_logprobs: self.generation.prompt_logprobs(),
            tournament,
            usage,
            weights: self.generation.weights(),
        };
        Ok((answer, self.draft))
    }

    /// Removes log-probabilities that are only for the record.
    fn hide_logprobs(&self, output: &mut Output) {
        if !self.shows_logprobs {
            let tokens = output.tokens.iter_mut();
            tokens.for_each(|token| token.logprobs = None);
        }
    }
}

impl StreamEnd {
    /// Returns whether the caller requested a record, so that the end of the stream must report it.
    pub fn is_requested(&self) -> bool {
        self.policy.is_requested()
    }

    /// Commits the records of the generations, which have ended.
    ///
    /// # Errors
    /// The error of the log, if the policy is to refuse.
    pub async fn commit(
        &self,
        generations: Vec<RecordedGeneration>,
    ) -> Result<CallRecords, RecordError> {
        let drafts = generations.into_iter().map(|ended| ended.draft).collect();
        self.policy.commit(drafts).await
    }
}

//! The bound on the judge's forward passes of a call.

use crate::http::error::ApiError;
use crate::judging::JudgeTask;
use judge::Method;

/// Maximum number of the judge's forward passes per call: comparisons × orders × principles.
const MAX_READS: usize = 40_000;

/// Checks the number of forward passes of `brackets` tournaments with the given number of candidates; `param` names the candidates.
///
/// # Errors
/// Names the parameters that make the number too large.
pub fn check_reads(
    param: &str,
    task: &JudgeTask,
    method: Method,
    candidates: usize,
    brackets: usize,
) -> Result<(), ApiError> {
    let each = comparisons(method, candidates);
    let (orders, principles) = (task.orders.reads().len(), task.principles.len().max(1));
    let reads = each.saturating_mul(task.reads()).saturating_mul(brackets);
    if reads <= MAX_READS {
        return Ok(());
    }
    let of_prompts = match brackets {
        1 => String::new(),
        _ => format!(" for each of {brackets} prompts"),
    };
    Err(ApiError::invalid(
        param,
        format!(
            "{candidates} candidates take {each} comparisons{of_prompts}, in {orders} orders and under {principles} principles: {reads} \
             judge reads, which exceeds the limit of {MAX_READS} per call"
        ),
    ))
}

/// Returns the maximum number of comparisons in a tournament of `n` candidates; `n` is at least 1.
fn comparisons(method: Method, n: usize) -> usize {
    match method {
        Method::Knockout => n - 1,
        Method::RoundRobin => n.saturating_mul(n - 1) / 2,
        Method::Ring { pivots } => n.saturating_mul(1 + pivots),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Turn;
    use judge::{OnDisagreement, Orders, Polarity, WeightedPrinciple};

    fn task(orders: Orders, principles: usize) -> JudgeTask {
        let principle = WeightedPrinciple {
            name: String::new(),
            text: String::new(),
            polarity: Polarity::Encourage,
            weight: 1.0,
            listed: false,
        };
        JudgeTask {
            context: Vec::new(),
            principles: vec![principle; principles],
            orders,
            on_disagreement: OnDisagreement::default(),
            weights: None,
            turn: Turn::now(),
        }
    }

    #[test]
    fn reads_are_comparisons_times_orders_times_principles() {
        let allowed = |orders, principles, method, candidates, brackets| {
            check_reads(
                "candidates",
                &task(orders, principles),
                method,
                candidates,
                brackets,
            )
            .is_ok()
        };
        let (both, given) = (Orders::Both, Orders::Given);
        // Without principles the template's own question counts as one.
        for principles in [0, 1] {
            assert!(allowed(both, principles, Method::Knockout, 20_001, 1));
            assert!(!allowed(both, principles, Method::Knockout, 20_002, 1));
            assert!(allowed(given, principles, Method::Knockout, 40_001, 1));
        }
        assert!(allowed(both, 64, Method::Knockout, 313, 1));
        assert!(!allowed(both, 64, Method::Knockout, 314, 1));
        assert!(allowed(both, 1, Method::RoundRobin, 200, 1));
        assert!(!allowed(both, 1, Method::RoundRobin, 201, 1));
        assert!(!allowed(both, 1, Method::RoundRobin, 200, 2));
        assert!(!allowed(both, 2, Method::RoundRobin, 200, 1));
        assert!(allowed(given, 1, Method::Ring { pivots: 3 }, 10_000, 1));
        assert!(!allowed(given, 1, Method::RoundRobin, usize::MAX, 1));
    }
}

//! Many requests: a closed loop of clients that wait for their answers, and an open one that does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::call::{Call, Record};
use crate::client::Client;

/// Gives the call of each number.
pub type Calls = Arc<dyn Fn(usize) -> Call + Send + Sync>;

/// When a closed loop ends.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    Requests(usize),
    Elapsed(Duration),
}

/// All records of a run.
#[derive(Debug)]
pub struct Run {
    pub records: Vec<Record>,
    /// Seconds from the first request to the last answer.
    pub wall: f64,
}

/// `clients` at a time, each sending its next request when its last is answered.
pub async fn closed(client: &Client, clients: usize, until: Until, calls: Calls) -> Run {
    let begun = Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let (client, next, calls) = (client.clone(), Arc::clone(&next), Arc::clone(&calls));
        tasks.spawn(async move {
            let mut records = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let over = match until {
                    Until::Requests(count) => number >= count,
                    Until::Elapsed(duration) => begun.elapsed() >= duration,
                };
                if over {
                    return records;
                }
                records.push(client.send(&calls(number)).await);
            }
        });
    }
    let records = tasks.join_all().await.concat();
    Run {
        records,
        wall: begun.elapsed().as_secs_f64(),
    }
}

/// One request at each of `arrivals`, whatever became of those before it.
pub async fn open(client: &Client, arrivals: Vec<Duration>, calls: Calls) -> Run {
    let begun = tokio::time::Instant::now();
    let mut tasks = JoinSet::new();
    for (number, arrival) in arrivals.into_iter().enumerate() {
        let call = calls(number);
        tokio::time::sleep_until(begun + arrival).await;
        let client = client.clone();
        tasks.spawn(async move { client.send(&call).await });
    }
    Run {
        records: tasks.join_all().await,
        wall: begun.elapsed().as_secs_f64(),
    }
}

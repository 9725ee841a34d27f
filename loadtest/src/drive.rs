//! Loops that send many requests. Clients of a closed loop wait for their answers; an open loop sends at given times.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::call::{Call, Record};
use crate::client::Client;

/// A function from a request's number to its call.
pub type Calls = Arc<dyn Fn(usize) -> Call + Send + Sync>;

/// The end of a closed loop.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    Requests(usize),
    Elapsed(Duration),
}

/// The records of a run.
#[derive(Debug)]
pub struct Run {
    pub records: Vec<Record>,
    /// Seconds from the first request to the last answer.
    pub wall: f64,
}

/// Runs `clients` clients, each of which sends its next request when its last one is answered.
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

/// Sends one request at each time of `arrivals`, without waiting for earlier answers.
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

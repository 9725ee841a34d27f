//! A hostile client: threads that send the requests of an attack over their own connections.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::attacks::{Attack, Size, Way};
use super::bodies::head;

/// The interval at which a thread checks whether the attack is over, and the timeout of a socket.
const LOOK: Duration = Duration::from_millis(100);

/// Connections that one thread holds. Connections that only wait share a thread.
const HELD: usize = 200;

/// The count of each status. `closed` counts connections that ended without a status.
pub type Heard = BTreeMap<String, usize>;

/// The threads of an attack, which run until they are stopped.
pub struct Attacker {
    stop: Arc<AtomicBool>,
    heard: Arc<Mutex<Heard>>,
    threads: Vec<JoinHandle<()>>,
}

impl Attacker {
    pub fn start(attack: &Attack, size: Size, key: &str, server: SocketAddr) -> Self {
        let (stop, heard) = (Arc::default(), Arc::default());
        let requests = Arc::new((attack.requests)(size, key));
        let connections = match attack.way {
            Way::Read => size.of(attack.connections).max(2),
            _ => size.of(attack.connections),
        };
        let each = match attack.way {
            Way::Read => 1,
            _ => HELD,
        };
        let mut threads = Vec::new();
        for first in (0..connections).step_by(each) {
            let thrower = Thrower {
                server,
                way: attack.way,
                first,
                count: each.min(connections - first),
                requests: Arc::clone(&requests),
                key: key.to_owned(),
                stop: Arc::clone(&stop),
                heard: Arc::clone(&heard),
            };
            threads.push(std::thread::spawn(move || thrower.run()));
        }
        Self {
            stop,
            heard,
            threads,
        }
    }

    /// Returns the counts of all answers so far.
    pub fn heard(&self) -> Heard {
        let heard = self.heard.lock();
        heard.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the attack, closes its connections and returns the counts.
    pub fn stop(self) -> Heard {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            // A thread that panicked has printed its message.
            let _ = thread.join();
        }
        let heard = self.heard.lock();
        heard.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One thread with its connections.
struct Thrower {
    server: SocketAddr,
    way: Way,
    /// The number of its first connection. `count` is the number of its connections.
    first: usize,
    count: usize,
    requests: Arc<Vec<Vec<u8>>>,
    key: String,
    stop: Arc<AtomicBool>,
    heard: Arc<Mutex<Heard>>,
}

impl Thrower {
    fn run(&self) {
        give_way();
        let mut number = self.first;
        if self.way == Way::Read {
            while !self.stopped() {
                if self.throw(number).is_err() {
                    // The server accepts no connection now: the thread tries again later.
                    std::thread::sleep(LOOK);
                }
                number += 1;
            }
            return;
        }
        let record = match self.way {
            Way::UnreadRecord => self.record(),
            _ => None,
        };
        let mut held: Vec<TcpStream> = Vec::new();
        while !self.stopped() {
            held.retain(|connection| !self.is_closed(connection));
            for _ in held.len()..self.count {
                let request = match (&record, self.way) {
                    (Some(record), _) => record,
                    (None, Way::UnreadRecord) => break,
                    _ => &self.requests[number % self.requests.len()],
                };
                number += 1;
                match self.send(request) {
                    Ok(connection) => held.push(connection),
                    Err(_) => break,
                }
                if self.stopped() {
                    return;
                }
            }
            std::thread::sleep(LOOK);
        }
        for connection in &held {
            let mut start = [0; 16];
            if connection.peek(&mut start).is_ok() {
                self.note(format!("{} held", status(&start)));
            }
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn note(&self, what: impl Into<String>) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        *heard.entry(what.into()).or_default() += 1;
    }

    /// Sends one request. It stops early where the server stops reading or the attack ends.
    fn send(&self, request: &[u8]) -> std::io::Result<TcpStream> {
        let mut connection = TcpStream::connect_timeout(&self.server, Duration::from_secs(5))?;
        connection.set_write_timeout(Some(LOOK))?;
        connection.set_read_timeout(Some(LOOK))?;
        let mut rest = request;
        while !rest.is_empty() && !self.stopped() {
            match connection.write(rest) {
                Ok(0) => break,
                Ok(count) => rest = &rest[count..],
                Err(error) if waits(&error) => {}
                // The server may answer and close before it has read the whole request.
                Err(_) => break,
            }
        }
        Ok(connection)
    }

    /// Sends one request, reads its answer to the end and counts its status.
    fn throw(&self, number: usize) -> std::io::Result<()> {
        let request = &self.requests[number % self.requests.len()];
        let mut connection = self.send(request)?;
        let start = self.read(&mut connection, 16);
        self.note(status(&start));
        self.read(&mut connection, 0);
        Ok(())
    }

    /// Reads to the end of the answer or of the attack, and returns the first `keep` bytes.
    fn read(&self, connection: &mut TcpStream, keep: usize) -> Vec<u8> {
        let (mut kept, mut piece) = (Vec::new(), vec![0; 1 << 16]);
        while !self.stopped() {
            match connection.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => {
                    kept.extend_from_slice(&piece[..count.min(keep.saturating_sub(kept.len()))]);
                    if keep > 0 && kept.len() >= keep {
                        break;
                    }
                }
                Err(error) if waits(&error) => {}
                Err(_) => break,
            }
        }
        kept
    }

    /// Sends the requests in turn until the server answers one with a record, and returns the request that reads this record.
    fn record(&self) -> Option<Vec<u8>> {
        self.requests.iter().find_map(|request| {
            let mut connection = self.send(request).ok()?;
            let answer = self.read(&mut connection, 1 << 20);
            self.note(status(&answer));
            let answer = String::from_utf8_lossy(&answer);
            let (_, rest) = answer.split_once("\"record_id\":\"")?;
            let (id, _) = rest.split_once('"')?;
            Some(head("GET", &format!("/records/{id}"), &self.key, 0))
        })
    }

    /// Returns whether the server has closed a connection whose answer is not read, and counts the status of that answer.
    fn is_closed(&self, mut connection: &TcpStream) -> bool {
        let mut start = [0; 16];
        if connection.set_nonblocking(true).is_err() {
            return true;
        }
        let ended = match connection.peek(&mut start) {
            Ok(0) => true,
            // The server ends a connection after it answers an unfinished request.
            Ok(_) if self.way == Way::Unfinished => true,
            // Unread bytes hide the end of the stream. A write fails where the server has closed.
            Ok(_) => connection.write(b"\r").is_err_and(|error| !waits(&error)),
            Err(error) => !waits(&error),
        };
        if ended {
            self.note(status(&start));
        }
        ended
    }
}

/// Lowers the priority of the calling thread. An attacker on another machine would take no processor time of the server's.
fn give_way() {
    #[cfg(target_os = "linux")]
    // SAFETY: setpriority(2) takes no pointers, and 0 is the calling thread. If it fails, the attack only costs the server more.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, 10);
    }
}

fn waits(error: &std::io::Error) -> bool {
    let kinds = [
        ErrorKind::WouldBlock,
        ErrorKind::TimedOut,
        ErrorKind::Interrupted,
    ];
    kinds.contains(&error.kind())
}

/// Reads the status from the first bytes of an answer.
fn status(start: &[u8]) -> String {
    let start = String::from_utf8_lossy(start);
    let status = start
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3));
    status.unwrap_or("closed").to_owned()
}

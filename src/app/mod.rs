//! Wiring: weights, engine, service, learner and router, and the order in which they start and stop.

//! Where the program computes.

//! GGUF files: read as llama.cpp's own tools read them, and refused by name if damaged or not supported.

mod commands;
mod hostile;
mod learning;
mod models;
mod smollm2;
mod writer;

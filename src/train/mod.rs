pub mod mixture;

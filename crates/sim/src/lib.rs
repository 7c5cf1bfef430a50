//! A simulated world of real nodes for tests.

//! The gateway's write side: claim, append, answer.

//! What stands around every native function: reasons and panics become error terms.

use codex_files::error::{Error, Result};
use codex_files::panics;
use rustler::{Env, Term};

use crate::decode::Decoded;
use crate::encode;

/// Runs the body of a native function, or what makes a message. A reason that it gives up with, or a
/// panic, becomes `{:error, reason}`. `point` is where a test can make it panic.
pub(crate) fn guarded<'a>(
    env: Env<'a>,
    point: &str,
    body: impl FnOnce() -> Decoded<'a, Term<'a>>,
) -> Term<'a> {
    let body = || {
        panics::point(point);
        body()
    };
    match panics::contained(body) {
        Ok(Ok(term)) => term,
        Ok(Err(reason)) => encode::error(env, reason),
        Err(panic) => failed(env, &panic),
    }
}

/// What `encode` makes of a result, or `{:error, reason}`.
pub(crate) fn result<'a, T>(
    env: Env<'a>,
    result: Result<T>,
    encode: impl FnOnce(T) -> Term<'a>,
) -> Term<'a> {
    match result {
        Ok(value) => encode(value),
        Err(error) => failed(env, &error),
    }
}

fn failed<'a>(env: Env<'a>, error: &Error) -> Term<'a> {
    encode::error(env, encode::reason(env, error))
}

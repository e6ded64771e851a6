//! The maps that go to Elixir, with keys that are known beforehand.

use std::mem::MaybeUninit;

use once_cell::sync::OnceCell;
use rustler::sys::enif_make_map_from_arrays;
use rustler::types::map::MapIterator;
use rustler::{Atom, Env, Term};

use crate::atoms;

/// The keys of a map, in the order in which the VM keeps them: so given, it has nothing to sort.
pub(crate) struct Shape<const N: usize> {
    keys: [Atom; N],
    /// Where the value of each field goes.
    positions: [usize; N],
}

impl<const N: usize> Shape<N> {
    fn new(env: Env<'_>, fields: [Atom; N]) -> Self {
        let mut shape = Self {
            keys: fields,
            positions: std::array::from_fn(|field| field),
        };
        // Any order will do, if this one cannot be had.
        let fields: Vec<_> = fields.into_iter().zip(0_usize..).collect();
        let sample = Term::map_from_pairs(env, &fields).ok();
        for (position, (key, field)) in sample
            .and_then(MapIterator::new)
            .into_iter()
            .flatten()
            .enumerate()
        {
            if let (Ok(key), Ok(field)) = (key.decode(), field.decode::<usize>()) {
                shape.keys[position] = key;
                shape.positions[field] = position;
            }
        }
        shape
    }

    /// The map of these values of the fields.
    pub(crate) fn map<'a>(&self, env: Env<'a>, values: &[Term<'a>; N]) -> Term<'a> {
        let keys = self.keys.map(Atom::as_c_arg);
        let mut ordered = keys;
        for (value, &position) in values.iter().zip(&self.positions) {
            ordered[position] = value.as_c_arg();
        }
        let mut map = MaybeUninit::uninit();
        // SAFETY: both arrays hold N terms, all of `env`, to which atoms belong as to any other, and
        // the function writes `map` before it returns true. rustler's own function does the same,
        // with two more allocations.
        #[allow(unsafe_code, reason = "see above")]
        unsafe {
            let (keys, values) = (keys.as_ptr(), ordered.as_ptr());
            if enif_make_map_from_arrays(env.as_c_arg(), keys, values, N, map.as_mut_ptr()) == 0 {
                unreachable!("the keys are distinct atoms");
            }
            Term::new(env, map.assume_init())
        }
    }
}

pub(crate) struct Shapes {
    pub(crate) attachment: Shape<9>,
    pub(crate) date_time: Shape<13>,
    pub(crate) metrics: Shape<9>,
}

macro_rules! shape {
    ($env:ident: $($field:ident)*) => {
        Shape::new($env, [$(atoms::$field()),*])
    };
}

impl Shapes {
    pub(crate) fn of(env: Env<'_>) -> &'static Self {
        static SHAPES: OnceCell<Shapes> = OnceCell::new();
        SHAPES.get_or_init(|| Self {
            attachment: shape!(env: struct_key id name path checksum size persist inserted_at ttl_ms),
            date_time: shape!(env: struct_key calendar year month day hour minute second microsecond
                time_zone zone_abbr utc_offset std_offset),
            metrics: shape!(env: total_count total_bytes persistent_count persistent_bytes
                expirable_count expirable_bytes next_expiry_at owned_count max_bytes),
        })
    }
}

//! What is `true`, `false`, or an object with options.

use std::fmt;
use std::marker::PhantomData;

use super::is_default;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A device that there is, with options, or not: in JSON `true`, `false`, or an object with the
/// options. By default there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch<T> {
    /// There is none.
    Off,
    /// There is one.
    On(T),
}

impl<T> Switch<T> {
    /// The options, if there is a device.
    pub fn options(&self) -> Option<&T> {
        match self {
            Self::Off => None,
            Self::On(options) => Some(options),
        }
    }
}

impl<T: Default> Default for Switch<T> {
    fn default() -> Self {
        Self::On(T::default())
    }
}

impl<T: Serialize + Default + PartialEq> Serialize for Switch<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_bool(false),
            Self::On(options) if is_default(options) => serializer.serialize_bool(true),
            Self::On(options) => options.serialize(serializer),
        }
    }
}

impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for Switch<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        switch(deserializer).map(|options| options.map_or(Self::Off, Self::On))
    }
}

/// Reads `false` as nothing, `true` as the default, and an object as what it says. Unlike serde's
/// untagged enums it keeps the error's place and the name of an unknown field.
pub(super) fn switch<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    struct Switch<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de> + Default> Visitor<'de> for Switch<T> {
        type Value = Option<T>;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("true, false or an object with options")
        }

        fn visit_bool<E>(self, is_on: bool) -> Result<Self::Value, E> {
            Ok(is_on.then(T::default))
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map)).map(Some)
        }
    }

    deserializer.deserialize_any(Switch(PhantomData))
}

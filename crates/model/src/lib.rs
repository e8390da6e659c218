//! The words of the domain as types, and the ports between layers.

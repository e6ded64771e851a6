# Tests that mount something: bin/file_systems runs them. Those with the tag `:user` show another thing to
# a user without privileges than to root: bin/test runs them as both.
ExUnit.start(exclude: [:file_systems])

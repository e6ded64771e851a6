# The tests take digests themselves. Newer versions of Mix hide what the library does not depend on.
if function_exported?(Mix, :ensure_application!, 1),
  do: apply(Mix, :ensure_application!, [:crypto])

# Tests that mount something: bin/file_systems runs them. Those with the tag `:user` show another thing to
# a user without privileges than to root: bin/test runs them as both.
ExUnit.start(exclude: [:file_systems])

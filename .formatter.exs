[
  inputs: ["{mix,.formatter}.exs", "{lib,test,bench,bin}/**/*.{ex,exs}"]
]

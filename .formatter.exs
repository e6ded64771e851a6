[
  inputs: ["{mix,.formatter}.exs", "{lib,test,bench,soak,bin}/**/*.{ex,exs}"]
]

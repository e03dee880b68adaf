"""`python -m data_pipeline.native`: compiles what extraction and downloads can use compiled."""

from data_pipeline.native import build

if __name__ == "__main__":
    print(build())

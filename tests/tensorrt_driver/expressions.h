// A stand-in for the builder's symbolic sizes: an expression is its text, as in "(8*32)" or "N".
#ifndef MSSTS_TENSORRT_DRIVER_EXPRESSIONS_H
#define MSSTS_TENSORRT_DRIVER_EXPRESSIONS_H

#include <NvInferRuntime.h>

#include <cstdint>
#include <deque>
#include <string>

// TensorRT's own classes call an implementation that they point to: here the object itself.
class Expression final : public nvinfer1::IDimensionExpr, public nvinfer1::apiv::VDimensionExpr {
 public:
  Expression(std::string text, bool constant, int64_t value)
      : text(std::move(text)), constant_(constant), value_(value) {
    mImpl = this;
  }
  bool isConstant() const noexcept override { return constant_; }
  int64_t getConstantValue() const noexcept override { return value_; }
  bool isSizeTensor() const noexcept override { return false; }

  const std::string text;

 private:
  bool constant_;
  int64_t value_;
};

class ExpressionBuilder final : public nvinfer1::IExprBuilder, public nvinfer1::apiv::VExprBuilder {
 public:
  ExpressionBuilder() { mImpl = this; }

  const Expression* symbol(const std::string& name) { return keep(name, false, 0); }

  const nvinfer1::IDimensionExpr* constant(int64_t value) noexcept override {
    return keep(std::to_string(value), true, value);
  }

  const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation op, const nvinfer1::IDimensionExpr& first,
                                            const nvinfer1::IDimensionExpr& second) noexcept override {
    const auto& a = static_cast<const Expression&>(first);
    const auto& b = static_cast<const Expression&>(second);
    const bool product = op == nvinfer1::DimensionOperation::kPROD;
    if (product && static_cast<const nvinfer1::apiv::VDimensionExpr&>(a).isConstant() &&
        static_cast<const nvinfer1::apiv::VDimensionExpr&>(b).isConstant()) {
      return constant(static_cast<const nvinfer1::apiv::VDimensionExpr&>(a).getConstantValue() *
                      static_cast<const nvinfer1::apiv::VDimensionExpr&>(b).getConstantValue());
    }
    return keep(a.text + (product ? "*" : "?") + b.text, false, 0);
  }

  const nvinfer1::IDimensionExpr* declareSizeTensor(int32_t, const nvinfer1::IDimensionExpr&,
                                                    const nvinfer1::IDimensionExpr&) override {
    return nullptr;
  }

 private:
  const Expression* keep(const std::string& text, bool constant, int64_t value) {
    return &kept_.emplace_back(text, constant, value);
  }

  std::deque<Expression> kept_;
};

#endif  // MSSTS_TENSORRT_DRIVER_EXPRESSIONS_H
